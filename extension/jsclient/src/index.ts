// arpc: calls, notifications and streams in both directions over one WebSocket.

export { Client } from './client.js';
export type {
  CallOptions, ClientEvents, ClientOptions, HandleOptions, NotifyOptions, State, StreamOptions,
} from './client.js';
export { bytes, form, json } from './codec.js';
export type { As, Codec } from './codec.js';
export { ArpcError, Code } from './error.js';
export type { Detail } from './error.js';
export type { WebSocketLike } from './link.js';
export type { Metadata } from './metadata.js';
export type { Reconnect } from './reconnect.js';
export type { Context, Handler } from './request.js';
export type { Stream, StreamContext, StreamHandler } from './stream.js';

// The client: a connection that comes back, and what is done with it.
//
//                 first attempt fails                      connected
//   connecting ------------------------> reconnecting <------------------> open
//        |  connected                         |   lost, or the peer drains  ^
//        +------------------------------------+-----------------------------+
//   close(), or an attempt or connection fails without reconnect: closed, for good

import { form, json, type As, type Codec } from './codec.js';
import { Limit } from './call.js';
import { ArpcError, Code, toError } from './error.js';
import { Cmd, Flag, methodBytes, Size, text, utf8, type Frame, type Seq } from './frame.js';
import { Feature, type Hello } from './hello.js';
import { Link, type WebSocketLike } from './link.js';
import { encodeMetadata, type Metadata } from './metadata.js';
import { Backoff, type Reconnect } from './reconnect.js';
import type { Handler, Route } from './request.js';
import type { Stream, StreamHandler, StreamRoute } from './stream.js';

export type State = 'connecting' | 'open' | 'reconnecting' | 'closed';

/** Times are in milliseconds, sizes in bytes. */
export interface ClientOptions {
  /** For values that are neither bytes nor strings; default JSON. */
  codec?: Codec;
  /** Returns credentials, for each connection and each authenticate(); they are sent before anything else. */
  token?: () => string | Uint8Array | PromiseLike<string | Uint8Array>;
  /** After that long a connection is authenticated again, with a new token. Default: never. */
  refreshAfter?: number;
  /** How to connect again, or false: the client is closed when its connection is lost. */
  reconnect?: Reconnect | false;
  /** How many calls, notifications and streams may wait while there is no connection; more, by default all, fail at once. */
  queue?: number;
  /** Runs after each connect, before what waits is sent: for subscriptions that the server forgets with a connection. */
  onConnect?: (client: Client) => unknown;
  /** A constructor of WebSockets where there is no global one. */
  WebSocket?: new (url: string, protocols?: string | string[]) => WebSocketLike;
  /** Subprotocols to offer. */
  protocols?: string | string[];
  /** The time of a call that is given none; default 60,000. Infinity is no limit. */
  timeout?: number;
  /** Sent with every call, notification and stream. */
  metadata?: Metadata;
  /** When nothing arrives for timeout, default 90,000, the connection is given up; the peer is pinged each interval, default 30,000. */
  keepalive?: { interval?: number; timeout?: number } | false;
  /** The time in which a connection must be open, agreed on and authenticated; default 10,000. */
  handshake?: number;
  /** The highest version of the protocol that is offered; default 2. */
  version?: 1 | 2;
  /** What the server may send. */
  limits?: {
    /** The longest body of a frame and message of a stream; default 64 MiB. */
    body?: number;
    /** Metadata of a message, default 16 KiB. */
    metadata?: number;
    /** What may wait to be received: of a stream, default 256 KiB, and of all together, default 4 MiB. */
    streamWindow?: number;
    streamWindows?: number;
    /** Streams that the server may have open; default 1024. */
    streams?: number;
  };
}

export interface NotifyOptions {
  metadata?: Metadata;
  as?: As;
}

export interface StreamOptions extends NotifyOptions {
  /** Ends it when aborted; the peer is told. */
  signal?: AbortSignal | undefined;
  /** Milliseconds after which it ends. Of a call, default ClientOptions.timeout; of a stream, none. */
  timeout?: number;
}

export interface CallOptions extends StreamOptions {
  /** Gets the metadata of the answer. */
  onMetadata?: (metadata: Metadata) => void;
}

export interface HandleOptions {
  as?: As;
}

/** The events of a client and what their listeners get. */
export interface ClientEvents {
  open: [];
  /** The connection is lost, or is given up because the peer drains; why. */
  close: [ArpcError];
  /** An attempt to connect, a notification's handler, onConnect or a refresh of the token has failed. */
  error: [ArpcError];
  state: [State];
  /** An attempt will be made in delay milliseconds. */
  reconnect: [{ attempt: number; delay: number }];
}

type Listeners = { [K in keyof ClientEvents]?: Set<(...args: ClientEvents[K]) => void> };

interface Waiting {
  start(link: Link): void;
  fail(e: ArpcError): void;
}

/** How many may wait for the first attempt, and for one after the peer has asked to connect again. */
const defaultQueue = 1024;

/** A client of an arpc server, which may call it back. It connects at once. */
export class Client {
  readonly codec: Codec;
  /** @internal */
  readonly streamRoutes = new Map<string, StreamRoute>();

  private readonly url: string;
  private readonly backoff: Backoff;
  private readonly routes = new Map<string, Route>();
  private readonly listeners: Listeners = {};
  private readonly links = new Set<Link>();
  /** @internal */
  current: Link | undefined;
  private waiting = new Set<Waiting>();
  private patient = true; // what is asked for waits for the attempt that is being made
  private phase: State = 'connecting';
  private retry?: ReturnType<typeof setTimeout>;
  private refresh?: ReturnType<typeof setTimeout>;
  /** The last number of a call or stream. @internal */
  seq = 0;

  /** url is that of a WebSocket; one of http and, in a page, a relative one are understood as well. */
  constructor(url: string, private readonly options: ClientOptions = {}) {
    const u = new URL(url, (globalThis as { location?: { href: string } }).location?.href);
    u.protocol = u.protocol.replace('http', 'ws');
    this.url = u.href;
    this.codec = options.codec ?? json;
    this.backoff = new Backoff(options.reconnect || {});
    void this.connect();
  }

  /** What the connection is doing. */
  get state(): State {
    return this.phase;
  }

  /**
   * Calls a method of the server. It rejects with an ArpcError: the server's, one of Code.DeadlineExceeded after the timeout, of
   * Code.Canceled after the signal, of Code.Unavailable without a connection.
   */
  call(route: string, value: unknown, options: CallOptions & { as: 'bytes' }): Promise<Uint8Array>;
  call(route: string, value: unknown, options: CallOptions & { as: 'text' }): Promise<string>;
  call<Res = unknown>(route: string, value?: unknown, options?: CallOptions): Promise<Res>;
  async call(route: string, value?: unknown, options: CallOptions = {}): Promise<unknown> {
    const codec = form(options.as, this.codec);
    const method = methodBytes(route), payload = encode(codec, value), md = this.metadata(options);
    return new Promise((resolve, reject) => {
      let link: Link | undefined, seq: Seq = 0, leave: (() => void) | undefined, over = false;
      const limit = new Limit(options.timeout ?? this.options.timeout ?? 60_000, options.signal, (e, bySignal) => {
        over = true;
        leave?.();
        link?.forget(seq, e, bySignal);
        reject(e);
      });
      if (over) return;
      const settle = <T>(f: (v: T) => void) => (v: T): void => {
        limit.stop();
        f(v);
      };
      const fail = settle(reject);
      leave = this.begin((l) => {
        link = l;
        seq = l.call(method, payload, { codec, onMetadata: options.onMetadata, resolve: settle(resolve), reject: fail }, limit.left, md);
      }, fail);
    });
  }

  /**
   * Sends without waiting for an answer, at most once. It returns false if there is no connection, and nothing is sent; it
   * throws when the message cannot be sent at all.
   */
  notify(route: string, value?: unknown, options: NotifyOptions = {}): boolean {
    const method = methodBytes(route), payload = encode(form(options.as, this.codec), value), md = this.metadata(options);
    let error: ArpcError | undefined;
    this.begin(
      (l) => l.send(l.message(Cmd.Notify, Flag.Async, ++this.seq, method, payload, undefined, md)),
      (e) => {
        error = e;
      });
    if (error && error.code !== Code.Unavailable) throw error;
    return !error;
  }

  /** Opens a stream. The server learns of it by the first message, closeSend() or next(). */
  async stream<In = unknown, Out = unknown>(route: string, options: StreamOptions = {}): Promise<Stream<In, Out>> {
    const method = methodBytes(route), md = this.metadata(options);
    return new Promise((resolve, reject) => {
      let leave: (() => void) | undefined, over = false;
      const limit = new Limit(options.timeout, options.signal, (e) => {
        over = true;
        leave?.();
        reject(e);
      });
      if (over) return;
      leave = this.begin((l) => {
        limit.stop();
        l.takes(md);
        const left = options.timeout === undefined ? undefined : limit.left;
        resolve(l.streams.open(++this.seq, method, options.as, left, options.signal, md));
      }, (e) => {
        limit.stop();
        reject(e);
      });
    });
  }

  /**
   * Answers the server's calls of a route, and takes its notifications. It throws if the route has a handler, and returns a
   * function that removes this one.
   */
  handle<Req = unknown, Res = unknown>(route: string, handler: Handler<Req, Res>, options: HandleOptions = {}): () => void {
    return register(this.routes, route, { handler: handler as Handler<unknown, unknown>, as: options.as });
  }

  /** Takes the streams that the server opens on a route; see handle. */
  handleStream<In = unknown, Out = unknown>(route: string, handler: StreamHandler<In, Out>, options: HandleOptions = {}): () => void {
    return register(this.streamRoutes, route, { handler: handler as StreamHandler<unknown, unknown>, as: options.as });
  }

  /** Calls f at each event; returns a function that ends this. */
  on<K extends keyof ClientEvents>(event: K, f: (...args: ClientEvents[K]) => void): () => void {
    const set = (this.listeners[event] ??= new Set() as NonNullable<Listeners[K]>);
    set.add(f);
    return () => void set.delete(f);
  }

  /** Authenticates the connection again, with a new token. If the server refuses, it closes the connection. */
  async authenticate(): Promise<void> {
    const token = await this.credentials();
    if (!token) throw new ArpcError(Code.FailedPrecondition, 'the client has no token');
    await this.call('arpc.auth', token);
    this.refreshLater();
  }

  /** Closes the client for good. What waits fails with Code.Unavailable. */
  close(reason = 'client closed'): void {
    this.shut(new ArpcError(Code.Unavailable, reason));
  }

  // Connecting.

  private async connect(): Promise<void> {
    this.retry = undefined;
    try {
      const token = this.options.token && (await this.credentials());
      if (this.phase === 'closed') return;
      const { WebSocket = (globalThis as { WebSocket?: ClientOptions['WebSocket'] }).WebSocket, protocols, keepalive } = this.options;
      if (!WebSocket) throw new ArpcError(Code.FailedPrecondition, 'there is no WebSocket; give the client one');
      const socket = new WebSocket(this.url, protocols);
      const alive = keepalive === false ? undefined : { interval: keepalive?.interval ?? 30_000, timeout: keepalive?.timeout ?? 90_000 };
      const link = new Link(this, socket, this.hello(), this.options.version ?? 2, token, this.options.handshake ?? 10_000, alive);
      this.links.add(link);
    } catch (e) {
      // Not in the constructor's turn, in which nobody listens yet.
      await null;
      this.failed(toError(e, Code.Unavailable));
    }
  }

  private hello(): Hello {
    const { body = Size.Body, metadata = 16384, streamWindow = 262144, streamWindows = 4194304, streams = 1024 } = this.options.limits ?? {};
    const window = Math.max(streamWindow, 4096);
    return { features: Feature.All, body: Math.max(body, 4096), metadata, window, windows: Math.max(streamWindows, window), streams };
  }

  private async credentials(): Promise<Uint8Array | undefined> {
    const token = await this.options.token?.();
    return typeof token === 'string' ? utf8(token) : token;
  }

  private refreshLater(): void {
    clearTimeout(this.refresh);
    if (!this.options.refreshAfter) return;
    this.refresh = setTimeout(() => {
      this.authenticate().catch((e: unknown) => this.emit('error', toError(e)));
    }, this.options.refreshAfter);
  }

  /** A connection is ready. @internal */
  ready(link: Link): void {
    this.current = link;
    this.patient = false;
    this.backoff.connected();
    if (this.options.token) this.refreshLater();
    this.become('open');
    this.emit('open');
    void this.resume(link);
  }

  private async resume(link: Link): Promise<void> {
    try {
      if (this.options.onConnect) await this.options.onConnect(this);
    } catch (e) {
      this.emit('error', toError(e));
    }
    if (this.current !== link) return; // its successor will do it
    const all = this.waiting;
    this.waiting = new Set();
    for (const w of all) this.start(link, w);
  }

  /** The peer drains: new things go to another connection, what is in flight stays. @internal */
  leaves(why: ArpcError): void {
    this.current = undefined;
    this.patient = true;
    this.emit('close', why);
    this.again(why);
  }

  /** A connection is gone. @internal */
  fell(link: Link, why: ArpcError): void {
    this.links.delete(link);
    if (this.phase === 'closed') return;
    if (link === this.current) {
      this.current = undefined;
      this.emit('close', why);
      this.again(why);
    } else if (!link.going) {
      this.failed(why);
    }
  }

  private failed(why: ArpcError): void {
    if (this.phase === 'closed') return;
    this.patient = false;
    this.emit('error', why);
    this.again(why);
  }

  /** Connects again, later. */
  private again(why: ArpcError): void {
    clearTimeout(this.refresh);
    if ((this.phase as State) === 'closed' || this.retry) return;
    if (this.options.reconnect === false) {
      this.shut(why);
      return;
    }
    this.become('reconnecting');
    if (!this.patient && !this.options.queue) this.failAll(unavailable(why));
    const delay = this.backoff.next();
    this.retry = setTimeout(() => void this.connect(), delay);
    this.emit('reconnect', { attempt: this.backoff.attempt, delay });
  }

  private shut(why: ArpcError): void {
    if (this.phase === 'closed') return;
    this.become('closed');
    clearTimeout(this.retry);
    clearTimeout(this.refresh);
    this.current = undefined;
    for (const l of this.links) l.close(why, 1000);
    this.failAll(why);
  }

  private failAll(e: ArpcError): void {
    const all = this.waiting;
    this.waiting = new Set();
    for (const w of all) w.fail(e);
  }

  private become(state: State): void {
    if (this.phase === state) return;
    this.phase = state;
    this.emit('state', state);
  }

  /** @internal */
  emit<K extends keyof ClientEvents>(event: K, ...args: ClientEvents[K]): void {
    for (const f of [...(this.listeners[event] ?? [])]) {
      try {
        f(...args);
      } catch (e) {
        queueMicrotask(() => {
          throw e; // the listener's fault is not the connection's
        });
      }
    }
  }

  // For calls.

  /** Begins something: now, or when there is a connection. It returns a function by which that is given up. */
  private begin(start: (link: Link) => void, fail: (e: ArpcError) => void): () => void {
    const w = { start, fail };
    const limit = this.patient ? Math.max(this.options.queue ?? 0, defaultQueue) : this.options.queue ?? 0;
    if (this.current) this.start(this.current, w);
    else if (this.phase === 'closed') fail(new ArpcError(Code.Unavailable, 'client closed'));
    else if (this.waiting.size < limit) this.waiting.add(w);
    else fail(limit ? new ArpcError(Code.ResourceExhausted, 'too many calls wait for a connection') : unavailable());
    return () => void this.waiting.delete(w);
  }

  private start(link: Link, w: Waiting): void {
    try {
      w.start(link);
    } catch (e) {
      w.fail(toError(e));
    }
  }

  private metadata(o: NotifyOptions): Uint8Array | undefined {
    return encodeMetadata(this.options.metadata, o.metadata);
  }

  /** @internal */
  route(f: Frame): Route | undefined {
    return this.routes.get(text(f.method));
  }
}

const unavailable = (why?: ArpcError): ArpcError =>
  new ArpcError(Code.Unavailable, 'not connected' + (why ? ': ' + why.message : ''), { cause: why });

function encode(codec: Codec, value: unknown): Uint8Array {
  try {
    return codec.encode(value);
  } catch (e) {
    throw toError(e, Code.InvalidArgument, 'cannot encode: ');
  }
}

function register<T>(routes: Map<string, T>, route: string, entry: T): () => void {
  methodBytes(route);
  if (routes.has(route)) throw new ArpcError(Code.AlreadyExists, `there is a handler of ${route}`);
  routes.set(route, entry);
  return () => {
    if (routes.get(route) === entry) routes.delete(route);
  };
}


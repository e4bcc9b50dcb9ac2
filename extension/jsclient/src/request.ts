// What the peer asks: requests and notifications, and their handlers.

import { form, type As } from './codec.js';
import { ArpcError, Code, encodeError, toError } from './error.js';
import type { Client } from './client.js';
import { Cmd, empty, Flag, makeFrame, text, utf8, type Frame } from './frame.js';
import { Limit } from './call.js';
import { Feature } from './hello.js';
import type { Link } from './link.js';
import { decodeMetadata, encodeMetadata, invalidMetadata, type Metadata } from './metadata.js';

/** What a handler knows beside the value. */
export interface Context {
  readonly client: Client;
  readonly route: string;
  /** Aborted when the caller cancels, when its deadline has passed and when the connection ends; its reason is an ArpcError. */
  readonly signal: AbortSignal;
  /** What the caller sent beside the value. */
  readonly metadata: Metadata;
  /** When the caller stops waiting, in milliseconds since 1970 by this side's clock. */
  readonly deadline?: number | undefined;
  /** Whether it is a notification, which has no answer. */
  readonly isNotify: boolean;
  /** The payload. */
  readonly body: Uint8Array;
  /** Adds a pair to what is sent with the answer. */
  setMetadata(key: string, value: string | Uint8Array): void;
}

/** Answers a request by what it returns, or by the error that it throws. */
export type Handler<Req, Res> = (value: Req, ctx: Context) => Res | PromiseLike<Res>;

export interface Route {
  handler: Handler<unknown, unknown>;
  as: As | undefined;
}

/** A request or notification in the hands of its handler. */
export class Request implements Context {
  readonly client: Client;
  readonly route: string;
  readonly metadata: Metadata;
  readonly deadline: number | undefined;
  readonly isNotify: boolean;
  readonly body: Uint8Array;
  private readonly control = new AbortController();
  private readonly limit: Limit;
  private readonly out: Metadata = {};

  /** @internal */
  constructor(private readonly link: Link, readonly frame: Frame) {
    this.client = link.client;
    this.route = text(frame.method);
    this.metadata = decodeMetadata(frame.metadata);
    this.deadline = frame.left === undefined ? undefined : Date.now() + frame.left;
    this.isNotify = (frame.cmd & Cmd.Mask) === Cmd.Notify;
    this.body = frame.payload.slice();
    this.limit = new Limit(frame.left, undefined, (e) => this.control.abort(e));
  }

  get signal(): AbortSignal {
    return this.control.signal;
  }

  setMetadata(key: string, value: string | Uint8Array): void {
    const size = encodeMetadata(this.out, { [key]: value })?.length ?? 0;
    if (size > (this.link.peer?.metadata ?? 65535)) throw invalidMetadata(`${size} bytes`);
    this.out[key] = value;
  }

  /** @internal */
  matches(seq: unknown): boolean {
    return !this.isNotify && this.frame.seq === seq;
  }

  /** @internal */
  abort(e: ArpcError): void {
    this.limit.stop();
    this.control.abort(e);
  }

  /** Runs the handler and answers. @internal */
  async run(route: Route): Promise<void> {
    const codec = form(route.as, this.client.codec);
    let value: unknown;
    try {
      try {
        value = codec.decode(this.frame.payload);
      } catch (e) {
        throw toError(e, Code.InvalidArgument, 'malformed request: ');
      }
      value = await route.handler(value, this);
      if (!this.isNotify) value = codec.encode(value);
    } catch (e) {
      this.limit.stop();
      if (this.isNotify) throw e;
      answerError(this.link, this.frame, toError(e), encodeMetadata(this.out));
      return;
    }
    this.limit.stop();
    if (!this.isNotify) answer(this.link, this.frame, 0, value as Uint8Array, encodeMetadata(this.out));
  }
}

/** Answers a request. */
export function answer(link: Link, f: Frame, flag: number, payload: Uint8Array, md?: Uint8Array): void {
  if (!link.has(Feature.Metadata)) md = undefined;
  const b = makeFrame(Cmd.Response, flag | (f.flag & Flag.Async), f.seq, f.method, payload, undefined, md);
  if (link.fits(b)) link.send(b);
  else if (payload !== empty) answerError(link, f, new ArpcError(Code.Internal, 'internal error: the answer is longer than the caller accepts'));
}

export function answerError(link: Link, f: Frame, e: ArpcError, md?: Uint8Array): void {
  if (link.has(Feature.Errors)) answer(link, f, Flag.Error | Flag.Coded, encodeError(e, link.client.codec), md);
  else answer(link, f, Flag.Error, utf8(e.message), md);
}

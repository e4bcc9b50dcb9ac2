// The classic script: the global ArpcClient, as pages have used it with arpc's first browser client, on this core. Calls resolve
// {data, err} and never reject.

import { Client } from './client.js';
import { json, auto, type Codec } from './codec.js';
import { ArpcError, Code } from './error.js';
import { Cmd, empty, Flag, join, makeFrame, methodBytes, parseFrame, Size, text, utf8 } from './frame.js';
import type { WebSocketLike } from './link.js';
import type { Request } from './request.js';

/** What the second argument of the constructor may be. */
interface ClassicCodec {
  Marshal(value: unknown): Uint8Array;
  Unmarshal(body: ArrayBuffer): unknown;
}

interface Result {
  data: unknown;
  err: unknown;
}

interface ClassicContext {
  cli: ArpcClient;
  /** The header of the frame. */
  head: Uint8Array;
  body: ArrayBuffer;
  method: string;
  data: unknown;
}

type Callback = (result: Result) => unknown;
type Hook = ((client: ArpcClient) => unknown) | undefined;

const closedState = 0, connectingState = 1, openState = 2;
const errReconnecting = '[error reconnecting]', errDisconnected = '[error disconnected]', errStopped = '[client stopped]';

const defaults = auto(json);

/** The default of the second argument. */
class Codec1 implements ClassicCodec {
  Marshal = (value: unknown): Uint8Array => defaults.encode(value);
  Unmarshal = (body: ArrayBuffer): unknown => defaults.decode(new Uint8Array(body));
}

const copy = (b: Uint8Array): ArrayBuffer => b.slice().buffer as ArrayBuffer;

class ArpcClient {
  /** The current socket. */
  ws: WebSocketLike | undefined;
  onOpen: Hook;
  onClose: Hook;
  onError: Hook;
  /** The calls that wait, by number. */
  readonly sessionMap: Record<string, { resolve: (r: Result) => void }> = {};
  readonly handlers: Record<string, (ctx: ClassicContext) => unknown> = {};
  private readonly core: Client;
  private readonly as: Codec;
  private pinging?: ReturnType<typeof setInterval>;

  constructor(
    readonly url: string, readonly codec: ClassicCodec = new Codec1(), readonly httpUrl = '/', readonly httpMethod = 'POST',
  ) {
    this.codec = codec ?? new Codec1(); // old pages leave out an argument by null
    this.httpUrl = httpUrl || '/';
    this.httpMethod = httpMethod || 'POST';
    this.as = {
      name: 'json',
      encode: (v) => (v === undefined || v === null ? empty : this.codec.Marshal(v)),
      decode: (b) => {
        try {
          return this.codec.Unmarshal(copy(b));
        } catch (e) {
          if (!b.length) return null;
          throw e;
        }
      },
    };
    // eslint-disable-next-line @typescript-eslint/no-this-alias
    const self = this;
    this.core = new Client(url, {
      WebSocket: class {
        constructor(url: string) {
          return (self.ws = new (globalThis as unknown as { WebSocket: new (url: string) => WebSocketLike }).WebSocket(url));
        }
      } as new (url: string) => WebSocketLike,
    });
    this.core.on('open', () => this.onOpen?.(this));
    this.core.on('error', (e) => {
      this.onError?.(this);
      if (this.state !== openState) this.onClose?.(this);
      else console.error('[ArpcClient]', e); // a handler's
    });
    this.core.on('close', () => this.onClose?.(this));
  }

  /** 0 closed, 1 connecting, 2 connected. */
  get state(): number {
    const s = this.core.state;
    return s === 'closed' ? closedState : s === 'open' ? openState : connectingState;
  }

  get seqNum(): number {
    return this.core.seq;
  }

  /** What keeps a message from being sent. */
  private obstacle(): string | undefined {
    return [errStopped, errReconnecting][this.state];
  }

  /** Answers the server's calls of a method by what h returns, and takes its notifications. */
  handle(method: string, h: (ctx: ClassicContext) => unknown): void {
    if (Object.hasOwn(this.handlers, method)) throw new Error(`handler for [${method}] exists`);
    this.core.handle(method, (data, ctx) => {
      const { frame } = ctx as Request;
      return h({ cli: this, head: frame.bytes.slice(0, Size.Head), body: copy(frame.payload), method, data });
    }, { as: this.as });
    this.handlers[method] = h;
  }

  /** Calls a method; timeout is in milliseconds, none without it. */
  call(method: string, req?: unknown, timeout?: number, cb?: Callback, isHttp?: boolean): Promise<Result> {
    return settled(isHttp ? this.overHttp(method, req, timeout) : this.overSocket(method, req, timeout), cb);
  }

  callHttp(method: string, req?: unknown, timeout?: number, cb?: Callback): Promise<Result> {
    return this.call(method, req, timeout, cb, true);
  }

  /** Sends without waiting for an answer; returns why that is not possible. */
  notify(method: string, req?: unknown, isHttp?: boolean): string | undefined {
    if (isHttp) {
      this.notifyHttp(method, req);
      return;
    }
    const err = this.obstacle();
    if (err) return err;
    try {
      return this.core.notify(method, req, { as: this.as }) ? undefined : errReconnecting;
    } catch (e) {
      return (e as Error).message;
    }
  }

  notifyHttp(method: string, req?: unknown): Promise<Result> {
    return settled(this.post(Cmd.Notify, method, req).then(() => null));
  }

  ping(): void {
    this.core.current?.ping();
  }

  pong(): void {
    this.core.current?.pongs();
  }

  /** Pings each time that so many milliseconds have passed. */
  keepalive(interval = 30_000): void {
    clearInterval(this.pinging);
    this.pinging = setInterval(() => this.ping(), interval);
  }

  shutdown(): void {
    clearInterval(this.pinging);
    if (this.state === closedState) return;
    this.core.close();
    queueMicrotask(() => this.onClose?.(this)); // as that of a socket, not in this turn's middle
  }

  private async overSocket(method: string, req: unknown, timeout: number | undefined): Promise<unknown> {
    const err = this.obstacle();
    if (err) throw err;
    const call = this.core.call(method, req, { timeout: timeout && timeout > 0 ? timeout : Infinity, as: this.as });
    // It was sent in this turn, so the number is its own.
    const seq = this.core.seq;
    try {
      return await new Promise((resolve, reject) => {
        this.sessionMap[seq] = { resolve: (r) => (r.err ? reject(r.err) : resolve(r.data)) };
        call.then(resolve, reject);
      });
    } catch (e) {
      if (e instanceof ArpcError && e.remote && e.code === Code.Unknown) throw this.value(e.message);
      if (timeout && e instanceof ArpcError && e.code === Code.DeadlineExceeded) throw 'timeout'; // of whoever was first to notice
      if (!(e instanceof ArpcError) || e.remote || e.code !== Code.Unavailable) throw e;
      throw this.state === closedState ? errStopped : errDisconnected;
    } finally {
      delete this.sessionMap[seq];
    }
  }

  /** An error that may be another value than a text. */
  private value(message: string): unknown {
    try {
      return this.codec.Unmarshal(copy(utf8(message)));
    } catch {
      return message;
    }
  }

  private async overHttp(method: string, req: unknown, timeout: number | undefined): Promise<unknown> {
    const signal = timeout && timeout > 0 ? AbortSignal.timeout(timeout) : undefined;
    let b: Uint8Array;
    try {
      b = await this.post(Cmd.Request, method, req, signal);
    } catch (e) {
      throw (e as Error).name === 'TimeoutError' ? 'timeout' : e;
    }
    const f = b.length < Size.Head ? undefined : parseFrame(b, false, 0);
    if (!f || (f.cmd & Cmd.Mask) !== Cmd.Response) throw 'malformed answer';
    if (f.flag & Flag.Error) throw this.value(text(f.payload));
    return this.as.decode(f.payload);
  }

  /** Sends a frame as the body of an HTTP request. */
  private async post(cmd: number, method: string, req: unknown, signal?: AbortSignal): Promise<Uint8Array> {
    const frame = makeFrame(cmd, 0, ++this.core.seq, methodBytes(method), this.as.encode(req));
    const init = { method: this.httpMethod, body: frame.buffer as ArrayBuffer, headers: { 'Content-Type': 'application/octet-stream' } };
    const r = await fetch(this.httpUrl, signal ? { ...init, signal } : init);
    if (!r.ok) throw `HTTP status ${r.status}`;
    return join([new Uint8Array(await r.arrayBuffer())]);
  }
}

/** Makes a Result of what comes, and tells cb. */
async function settled(p: Promise<unknown>, cb?: Callback): Promise<Result> {
  let r: Result;
  try {
    r = { data: await p, err: null };
  } catch (e) {
    r = { data: null, err: e instanceof Error ? e.message : e };
  }
  if (typeof cb === 'function') {
    try {
      cb(r);
    } catch (e) {
      queueMicrotask(() => {
        throw e; // the page's, and not to be swallowed
      });
    }
  }
  return r;
}

Object.assign(globalThis, { ArpcClient, Codec: Codec1 });

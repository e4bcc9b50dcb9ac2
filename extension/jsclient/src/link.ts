// One connection: its beginning, what is sent and received on it, and its end.
//
//   connecting --socket open--> greeting --pong--> authenticating --answer--> ready --drain--> going --nothing in flight--> down
//        any of them --lost, closed, malformed input, no answer in time--> down

import type { Client } from './client.js';
import { finish, type Call } from './call.js';
import { ArpcError, Code, cut, decodeError, encodeError, lost, toError } from './error.js';
import { Cmd, empty, Flag, join, makeFrame, malformed, parseFrame, Size, seqOf, Splitter, text, utf8, type Frame, type Seq } from './frame.js';
import { decodeHello, encodeHello, Feature, type Hello } from './hello.js';
import { answerError, Request } from './request.js';
import { Streams } from './stream.js';

/** What a connection needs of a WebSocket; that of browsers and of Node have it, and the one of the package ws. */
export interface WebSocketLike {
  binaryType: string;
  readonly readyState: number;
  readonly bufferedAmount: number;
  onopen: unknown;
  onmessage: unknown;
  onclose: unknown;
  onerror: unknown;
  send(data: ArrayBuffer): void;
  close(code?: number, reason?: string): void;
}

const enum Out {
  /** Frames are joined up to that many bytes. */
  Batch = 65536,
  /** That many requests and notifications may wait for the answer to HELLO. */
  Early = 1024,
}

const open = 1; // WebSocket.OPEN
const none = (): void => {};

export class Link {
  /** What the peer has said; undefined for version 1. */
  peer: Hello | undefined;
  /** Why the connection is gone. */
  down: ArpcError | undefined;
  /** Whether the peer wants nothing new. */
  going = false;
  streams: Streams;

  private greeted = false;
  private farewell: ArpcError | undefined;
  private readonly calls = new Map<Seq, Call>();
  private readonly requests = new Set<Request>();
  private readonly splitter: Splitter;
  private out: Uint8Array[] = [];
  private outSize = 0;
  private readonly handshake: ReturnType<typeof setTimeout>;
  private keepalive?: ReturnType<typeof setInterval>;
  private heard = true;
  private problem = '';
  /** What came before the connection was ready, which listeners of open are to hear of first. */
  private early: (() => void)[] | undefined = [];

  constructor(
    readonly client: Client, readonly socket: WebSocketLike, readonly ours: Hello, private readonly version: number,
    private readonly token: Uint8Array | undefined, handshake: number, private readonly alive: { interval: number; timeout: number } | undefined,
  ) {
    this.streams = new Streams(this);
    this.splitter = new Splitter(ours.body);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => this.opened();
    socket.onmessage = (e: { data: unknown }) => this.received(e.data);
    socket.onerror = (e: { message?: string }) => {
      this.problem = e.message ?? '';
    };
    socket.onclose = (e: { code?: number; reason?: string }) => {
      this.end(this.farewell ?? new ArpcError(Code.Unavailable, e.reason || this.problem || `WebSocket closed (${e.code})`));
    };
    this.handshake = setTimeout(() => this.close(new ArpcError(Code.DeadlineExceeded, 'no answer in time'), 4000), handshake);
  }

  has(feature: Feature): boolean {
    return !!(this.peer && this.peer.features & feature);
  }

  // The beginning.

  private opened(): void {
    this.startKeepalive();
    if (this.version < 2) {
      void this.welcome();
      return;
    }
    const hello = encodeHello(this.ours, this.client.codec.name);
    this.send(makeFrame(Cmd.Ping, 0, 0, empty, hello));
  }

  private pong(body: Uint8Array): void {
    if (this.greeted || this.version < 2) return;
    this.greeted = true;
    this.peer = decodeHello(body);
    if (this.has(Feature.Streams)) this.streams.credit = this.peer!.windows;
    void this.welcome();
  }

  private async welcome(): Promise<void> {
    try {
      if (this.token) await this.authenticate(this.token);
    } catch (e) {
      this.close(e as ArpcError, 4000);
      return;
    }
    if (this.down) return;
    clearTimeout(this.handshake);
    this.client.ready(this);
    this.release();
  }

  /** Handles what came before the connection was ready. */
  private release(): void {
    const early = this.early ?? [];
    this.early = undefined;
    for (const handle of early) if (!this.down) handle();
  }

  authenticate(token: Uint8Array): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.call(utf8('arpc.auth'), token, { codec: this.client.codec, resolve, reject });
    });
  }

  private startKeepalive(): void {
    const alive = this.alive;
    if (!alive) return;
    let silent = 0;
    // Counted in turns, not by the clock: a computer that has slept asks before it gives up.
    this.keepalive = setInterval(() => {
      silent = this.heard ? 0 : silent + 1;
      this.heard = false;
      if (silent * alive.interval >= alive.timeout) this.close(new ArpcError(Code.Unavailable, 'the peer does not answer'), 4000);
      else this.ping();
    }, alive.interval);
  }

  // Sending.

  /** Bytes that wait to be sent. */
  get buffered(): number {
    return this.outSize + this.socket.bufferedAmount;
  }

  /** Sends a frame, in a buffer of its own: to a peer of version 1 as a message, else with others of this turn. */
  send(frame: Uint8Array): void {
    if (this.down) return;
    if (this.outSize + frame.length > Out.Batch) this.flush();
    this.out.push(frame);
    this.outSize += frame.length;
    if (!this.peer) this.flush();
    else if (this.out.length === 1) queueMicrotask(() => this.flush());
  }

  private flush(): void {
    if (!this.out.length) return;
    const message = join(this.out);
    this.out = [];
    this.outSize = 0;
    if (this.socket.readyState === open) this.socket.send(message.buffer as ArrayBuffer);
  }

  control(cmd: number, flag: number, seq: Seq, body: Uint8Array): void {
    this.send(makeFrame(cmd, flag, seq, empty, body));
  }

  ping(): void {
    this.control(Cmd.Ping, 0, 0, empty);
  }

  pongs(): void {
    this.control(Cmd.Pong, 0, 0, empty);
  }

  /** Whether the peer takes a frame of that length. */
  fits(frame: Uint8Array): boolean {
    return frame.length - Size.Head <= (this.peer?.body ?? Size.Body);
  }

  /** Sends a request; returns its number. */
  call(method: Uint8Array, payload: Uint8Array, call: Call, left?: number, md?: Uint8Array): Seq {
    const seq = ++this.client.seq;
    const f = this.message(Cmd.Request, 0, seq, method, payload, left, md);
    this.calls.set(seq, call);
    this.send(f);
    return seq;
  }

  /** Makes a request or notification. */
  message(cmd: number, flag: number, seq: Seq, method: Uint8Array, payload: Uint8Array, left?: number, md?: Uint8Array): Uint8Array {
    if (!this.has(Feature.Metadata)) left = md = undefined;
    this.takes(md);
    const f = makeFrame(cmd, flag, seq, method, payload, left, md);
    if (!this.fits(f)) throw new ArpcError(Code.InvalidArgument, 'message is longer than the peer accepts');
    return f;
  }

  /** Throws if the peer does not take that much metadata. */
  takes(md: Uint8Array | undefined): void {
    if (md && this.has(Feature.Metadata) && md.length > this.peer!.metadata) {
      throw new ArpcError(Code.InvalidArgument, `invalid metadata: ${md.length} bytes, the peer takes ${this.peer!.metadata}`);
    }
  }

  /** Forgets a call that has ended here, and tells the peer, which knows the deadline, if it was for another reason. */
  forget(seq: Seq, why: ArpcError, tell = false): void {
    if (!this.calls.delete(seq)) return;
    if (tell && this.has(Feature.Cancel)) {
      this.control(Cmd.Cancel, 0, seq, join([Uint8Array.of(Code.Canceled), cut(why.message, 1024)]));
    }
    this.rest();
  }

  // Receiving.

  private received(data: unknown): void {
    this.heard = true;
    try {
      this.splitter.push(typeof data === 'string' ? utf8(data) : new Uint8Array(data as ArrayBuffer), (b) => {
        if (!this.down) this.frame(b);
      });
    } catch (e) {
      this.close(toError(e, Code.Internal), 4000);
    }
  }

  private frame(b: Uint8Array): void {
    const cmd = b[5]! & Cmd.Mask;
    if (cmd === Cmd.Ping) {
      this.pongs();
      return;
    }
    if (cmd === Cmd.Pong) {
      this.pong(b.subarray(Size.Head));
      return;
    }
    const f = parseFrame(b, !!this.peer, this.ours.metadata);
    if (this.early && f && (cmd === Cmd.Request || cmd === Cmd.Notify || cmd === Cmd.Cancel)) {
      this.early.push(() => this.handleFrame(f, cmd, b));
      if (this.early.length > Out.Early) this.release();
      return;
    }
    this.handleFrame(f, cmd, b);
  }

  private handleFrame(f: Frame | undefined, cmd: number, b: Uint8Array): void {
    if (cmd === Cmd.Request || cmd === Cmd.Notify) {
      if (f) this.request(f, cmd);
      else if (cmd === Cmd.Request && b[7] && b.length > Size.Head) {
        // Enough of the method is there to be echoed.
        const method = b.subarray(Size.Head, Size.Head + Math.min(b[7], Size.Method));
        const bad = { cmd, flag: b[6]!, seq: seqOf(b), bytes: b, method, payload: empty };
        answerError(this, bad, new ArpcError(Code.InvalidArgument, 'malformed request: method length'));
      }
    } else if (cmd === Cmd.Response) {
      if (f) this.response(f);
    } else if (cmd === Cmd.Stream) {
      if (f) this.streams.frame(f, this.client.streamRoutes);
    } else if (cmd === Cmd.Cancel && this.has(Feature.Cancel)) {
      this.cancel(f!);
    } else if ((cmd === Cmd.Credit || cmd === Cmd.Reset) && this.has(Feature.Streams)) {
      this.streams.controlFrame(f!);
    } else if (cmd === Cmd.GoAway && this.has(Feature.GoAway)) {
      this.goAway(f!);
    } else {
      throw malformed(`command ${cmd}`);
    }
  }

  private response(f: Frame): void {
    const call = this.calls.get(f.seq);
    if (!call) return;
    this.calls.delete(f.seq);
    finish(call, f, this.client.codec);
    this.rest();
  }

  private request(f: Frame, cmd: number): void {
    const r = this.client.route(f);
    if (!r) {
      if (cmd === Cmd.Request) answerError(this, f, new ArpcError(Code.Unimplemented, 'method not found'));
      return;
    }
    const req = new Request(this, f);
    this.requests.add(req);
    req.run(r).catch((e: unknown) => this.client.emit('error', toError(e))).finally(() => {
      this.requests.delete(req);
      this.rest();
    });
  }

  private cancel(f: Frame): void {
    if (f.payload[0] !== Code.Canceled) throw malformed('CANCEL');
    const why = 'cancelled by the caller: ' + text(f.payload.subarray(1, 1025));
    for (const r of this.requests) if (r.matches(f.seq)) r.abort(new ArpcError(Code.Canceled, why, { remote: true }));
  }

  private goAway(f: Frame): void {
    const e = decodeError(f.payload, this.client.codec);
    if (f.flag & Flag.Error) {
      this.farewell = e;
    } else if (!this.going) {
      if (this.client.current !== this) { // not even ready
        this.close(e, 1000);
        return;
      }
      this.going = true;
      this.client.leaves(e);
      this.rest();
    }
  }

  /** Closes a connection on which nothing is left to wait for, when the peer has asked for that. */
  rest(): void {
    if (!this.going || this.calls.size || this.requests.size || this.streams.size) return;
    // In the next turn, after what this one sends.
    queueMicrotask(() => this.close(new ArpcError(Code.Unavailable, 'the peer is going away'), 1000));
  }

  // The end.

  /** Closes the connection, and tells the peer why. */
  close(why: ArpcError, code: number): void {
    if (this.down) return;
    if (this.has(Feature.GoAway)) this.control(Cmd.GoAway, Flag.Error, 0, encodeError(why, this.client.codec));
    this.flush();
    const s = this.socket;
    s.onopen = s.onmessage = s.onclose = null;
    s.onerror = none; // the package ws throws errors that nobody takes
    s.close(code, why.message.slice(0, 40)); // at most 123 bytes
    this.end(why);
  }

  private end(why: ArpcError): void {
    if (this.down) return;
    this.down = why;
    clearTimeout(this.handshake);
    clearInterval(this.keepalive);
    const e = lost(why);
    this.client.fell(this, why);
    for (const c of this.calls.values()) c.reject(e);
    this.calls.clear();
    for (const r of this.requests) r.abort(e);
    this.streams.end(e);
  }
}

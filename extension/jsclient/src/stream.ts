// Streams: sequences of messages in both directions under one number, with credit.
//
//            first frame, flag Open            closeSend                 peer's last frame
//  (none) ----------------------> open ------> sending ended --+
//                                  |  \                        +--> over
//                                  |   +-----> receiving ended +
//                                  |  peer's last     closeSend
//                                  +-- reset by either end, or connection lost --> over

import { form, type As, type Codec } from './codec.js';
import { Limit } from './call.js';
import { ArpcError, Code, decodeError, encodeError, toError } from './error.js';
import { Cmd, empty, Flag, join, makeFrame, malformed, Size, text, view, type Frame, type Seq } from './frame.js';
import { Feature } from './hello.js';
import type { Link } from './link.js';
import { decodeMetadata, encodeMetadata, invalidMetadata, type Metadata } from './metadata.js';

/** What a stream handler knows beside the stream. */
export interface StreamContext {
  /** Aborted when the stream is over, with the reason. */
  readonly signal: AbortSignal;
  /** What the peer sent when it opened the stream. */
  readonly metadata: Metadata;
  /** When the stream ends at the latest, in milliseconds since 1970 by this side's clock. */
  readonly deadline?: number | undefined;
}

/** Runs for each stream that the peer opens. The stream ends when it returns, or with the error that it throws. */
export type StreamHandler<In, Out> = (stream: Stream<In, Out>, ctx: StreamContext) => unknown;

export interface StreamRoute {
  handler: StreamHandler<unknown, unknown>;
  as: As | undefined;
}

const enum Bound {
  /** Bytes of a message in a frame at most, so that streams and calls take turns. */
  Piece = 65536,
  /** What may wait in the socket before streams wait. */
  Socket = 1 << 20,
  /** Messages that may wait although they cost no credit. */
  Unpaid = 1024,
  /** Bytes that may wait to be received from a peer of version 1, which knows no credit. */
  UnreadV1 = 1 << 20,
}

const over = (): ArpcError => new ArpcError(Code.Canceled, 'the stream is over');
const closed = (): ArpcError => new ArpcError(Code.FailedPrecondition, 'the stream was closed for sending');
const exhausted = (what: string): ArpcError => new ArpcError(Code.ResourceExhausted, what);

/** A message on its way out. */
interface Sending {
  bytes: Uint8Array;
  /** No message: only what the frame says besides. */
  none: boolean;
  last: boolean;
  done(): void;
  fail(e: ArpcError): void;
}

interface Receiving<In> {
  resolve(r: IteratorResult<In, undefined>): void;
  reject(e: ArpcError): void;
}

/**
 * A stream. `for await` receives its messages; leaving the loop early resets a stream that this end has opened, as others end with
 * their handler; next() takes a single one. A sender waits while the other end has not received enough.
 */
export class Stream<In = unknown, Out = unknown> implements AsyncIterable<In>, AsyncIterator<In, undefined> {
  readonly route: string;
  private readonly control = new AbortController();
  private readonly codec: Codec;
  private readonly v2: boolean;
  private readonly limit: Limit;

  private readonly inbox: { bytes: Uint8Array; more: boolean }[] = [];
  private readonly receivers: Receiving<In>[] = [];
  private partial: Uint8Array[] = [];
  private unread = 0; // bytes of inbox
  private unpaid = 0; // messages of inbox that cost no credit
  private window: number; // bytes that the peer may send
  private owed = 0; // bytes received and not yet given back
  private recvError: ArpcError | undefined;
  private recvEnd = false; // the peer sent its last frame
  private discard = false; // what arrives is dropped

  private readonly outbox: Sending[] = [];
  private credit: number;
  private sendError: ArpcError | undefined;
  private closing = false; // the last message is in the outbox or gone
  private sendEnd = false;
  private opened: boolean;
  private isOver = false;
  private md: Metadata; // the peer's
  private out: Uint8Array | undefined; // metadata to send
  private sentMetadata = false;

  /** @internal */
  constructor(
    private readonly link: Link, private readonly seq: Seq, private readonly method: Uint8Array, private readonly own: boolean,
    as: As | undefined, timeout?: number, signal?: AbortSignal, metadata?: Uint8Array,
  ) {
    this.route = text(method);
    this.codec = form(as, link.client.codec);
    this.v2 = link.has(Feature.Streams);
    this.opened = !own;
    this.md = decodeMetadata(own ? undefined : metadata);
    if (own) this.out = metadata;
    this.window = link.ours.window;
    this.credit = link.peer?.window ?? 0;
    this.limit = new Limit(timeout, signal, (e) => this.reset(e));
    if (this.isOver) this.limit.stop();
  }

  /** Aborted when the stream is over, with the reason. */
  get signal(): AbortSignal {
    return this.control.signal;
  }

  /** What the peer sent beside its messages: with the first if it opened the stream, else with any. */
  get metadata(): Metadata {
    return this.md;
  }

  /** Adds a pair to what the handler of a stream sends with its next message. Later than that it throws. */
  setMetadata(key: string, value: string | Uint8Array): void {
    if (this.own || this.sentMetadata) throw new ArpcError(Code.FailedPrecondition, 'metadata was sent already');
    const out = encodeMetadata(decodeMetadata(this.out), { [key]: value });
    if ((out?.length ?? 0) > (this.link.peer?.metadata ?? 65535)) throw invalidMetadata(`${out?.length} bytes`);
    this.out = out;
  }

  // Receiving.

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Receives the next message. It rejects with the error with which the stream has ended. */
  next(): Promise<IteratorResult<In, undefined>> {
    return new Promise((resolve, reject) => {
      this.receivers.push({ resolve, reject });
      this.pull();
    });
  }

  /** Ends the stream that this end has opened, unless it has ended; that of a handler ends with the handler's answer or error. */
  return(): Promise<IteratorResult<In, undefined>> {
    if (this.own) this.reset();
    return Promise.resolve({ done: true, value: undefined });
  }

  /** Gives what has arrived to who waits for it. */
  private pull(): void {
    while (this.receivers.length) {
      const chunk = this.inbox.shift();
      if (!chunk) {
        if (this.recvError) this.receivers.shift()!.reject(this.recvError);
        else if (this.recvEnd || this.discard) this.receivers.shift()!.resolve({ done: true, value: undefined });
        else {
          // The peer may be the one to begin.
          if (!this.opened && this.v2 && !this.outbox.length) this.push(empty, true, false).catch(() => {});
          return;
        }
        continue;
      }
      const n = chunk.bytes.length;
      this.unread -= n;
      if (!n) this.unpaid--;
      this.gaveBack(n);
      this.partial.push(chunk.bytes);
      if (this.partial.reduce((sum, p) => sum + p.length, 0) > this.link.ours.body) {
        this.reset(exhausted('stream message above the limit of the body length'));
      } else if (!chunk.more) {
        const bytes = join(this.partial), receiver = this.receivers.shift()!;
        this.partial = [];
        try {
          receiver.resolve({ done: false, value: this.codec.decode(bytes) as In });
        } catch (e) {
          receiver.reject(toError(e, Code.Internal, 'malformed message: '));
        }
      }
    }
  }

  /** Counts n bytes as taken, and gives credit to the peer when it is worth a frame. */
  private gaveBack(n: number): void {
    if (!this.v2 || this.isOver) return;
    this.link.streams.gaveBack(n);
    if (this.recvEnd) return;
    this.owed += n;
    if (this.owed >= this.link.ours.window / 2) {
      this.window += this.owed;
      this.link.streams.sendCredit(Cmd.Credit | this.bit, this.seq, this.owed);
      this.owed = 0;
    }
  }

  /** Takes a frame of the peer's. @internal */
  arrived(f: Frame): void {
    const { flag, payload } = f, last = f.cmd & Cmd.Last, n = payload.length;
    if (this.recvEnd || (this.v2 && this.own && flag & Flag.Open)) throw malformed('stream');
    if (this.own && f.metadata) this.md = decodeMetadata(f.metadata);
    const none = this.v2 ? flag & Flag.NoData : !n;
    if (this.v2) {
      this.window -= n;
      if (this.window < 0) {
        this.link.streams.gaveBack(n);
        this.reset(exhausted('the peer sent more on a stream than it may'));
        return;
      }
    }
    if (!none && !this.discard && !this.recvError) {
      this.unread += n;
      if (!n || !this.v2) this.unpaid++;
      // A copy, so that what waits does not keep the message that brought it.
      this.inbox.push({ bytes: payload.slice(), more: !!(flag & Flag.More) });
      if (this.unpaid > Bound.Unpaid || (!this.v2 && this.unread > Math.max(Bound.UnreadV1, n))) {
        this.reset(exhausted("the stream's messages were not received"));
      }
    }
    if (last) {
      this.recvEnd = true;
      this.ended();
    }
    this.pull();
  }

  // Sending.

  /** Sends a message, after those before it; resolves when it was handed to the connection, which may have to wait for credit. */
  async send(value: Out): Promise<void> {
    const bytes = this.encode(value);
    return this.push(bytes, false, false);
  }

  /** Sends a message if that needs not wait, otherwise returns false. It throws when the stream is closed. */
  trySend(value: Out): boolean {
    const bytes = this.encode(value);
    this.check();
    if (this.outbox.length || !this.fits(Math.min(bytes.length, this.piece()))) return false;
    this.push(bytes, false, false).catch(() => {});
    return true;
  }

  /** Says that this end sends no more, after what it has sent. */
  async closeSend(): Promise<void> {
    if (this.closing) return;
    return this.push(empty, true, true);
  }

  /** Ends the stream in both directions with an error, which the peer gets, and drops what was not received. */
  reset(error?: unknown): void {
    const e = error === undefined ? over() : toError(error);
    if (this.isOver) return;
    const tell = this.opened && (this.v2 || !this.sendEnd);
    if (this.v2 || !this.opened || this.recvEnd) this.over(); // else its frames are recognised until the last
    this.drop();
    this.fail(e, e);
    if (!tell) return;
    if (this.v2) {
      this.link.control(Cmd.Reset | this.bit, Flag.Error | Flag.Coded, this.seq, encodeError(e, this.link.client.codec));
    } else {
      this.sendEnd = true;
      this.link.send(makeFrame(Cmd.Stream | this.bit | Cmd.Last, 0, this.seq, this.method, empty));
    }
  }

  /** Ends the stream because the peer has reset it, or the connection is gone. What has arrived can still be received. @internal */
  lost(e: ArpcError): void {
    this.over();
    this.fail(this.recvEnd ? undefined : e, e);
  }

  /** Ends what waits. */
  private fail(recv: ArpcError | undefined, send: ArpcError): void {
    this.recvError ??= recv;
    this.sendError ??= send;
    this.closing = true;
    for (const s of this.outbox.splice(0)) s.fail(send);
    this.finished(send);
    this.pull();
  }

  private finished(why: ArpcError): void {
    this.link.streams.senders.delete(this as unknown as AnyStream);
    this.limit?.stop(); // not there yet when the signal was aborted before
    this.control.abort(why);
  }

  /** Takes it out of the table. What may never be received counts as taken. */
  private over(): void {
    if (this.v2) this.link.streams.gaveBack(this.unread);
    this.isOver = true;
    this.link.streams.remove(this.own, this.seq);
  }

  /** Drops what was not received, and what will arrive. */
  private drop(): void {
    this.discard = true;
    this.inbox.length = this.unread = this.unpaid = 0;
    this.partial = [];
  }

  /** Ends the stream when both directions have ended. */
  private ended(): void {
    if (!this.sendEnd || !this.recvEnd || this.isOver) return;
    this.over();
    this.sendError ??= closed();
    this.finished(over());
  }

  private get bit(): number {
    return this.own ? Cmd.Own : 0;
  }

  private encode(value: Out): Uint8Array {
    let bytes: Uint8Array;
    try {
      bytes = this.codec.encode(value);
    } catch (e) {
      throw toError(e, Code.InvalidArgument, 'cannot encode: ');
    }
    const limit = this.link.peer?.body ?? Size.Body;
    if (bytes.length > limit - this.method.length) throw exhausted('stream message above the limit of the body length');
    if (!this.v2 && !bytes.length) {
      throw new ArpcError(Code.InvalidArgument, "the peer's version of the protocol has no empty stream messages");
    }
    return bytes;
  }

  private check(): void {
    if (this.sendError) throw this.sendError;
    if (this.closing) throw closed();
  }

  private push(bytes: Uint8Array, none: boolean, last: boolean): Promise<void> {
    return new Promise((done, fail) => {
      this.check();
      if (last) this.closing = true;
      // The caller may go on to use its memory.
      this.outbox.push({ bytes: bytes.slice(), none, last, done, fail });
      this.link.streams.senders.add(this as unknown as AnyStream);
      this.link.streams.pump();
    });
  }

  /** The longest piece of a message. */
  private piece(): number {
    const p = this.link.peer;
    if (!this.v2 || !p) return Infinity;
    return Math.min(Bound.Piece, p.window >> 2, Math.max(p.body - Size.Method - 6 - (this.out?.length ?? 0), 1024));
  }

  private fits(n: number): boolean {
    return (!n || this.link.buffered < Bound.Socket) && (!n || !this.v2 || (n <= this.credit && n <= this.link.streams.credit));
  }

  /** Sends a frame if it may. It reports whether it did. @internal */
  pumpOne(): boolean {
    const s = this.outbox[0];
    if (!s) {
      this.link.streams.senders.delete(this as unknown as AnyStream);
      return false;
    }
    const n = Math.min(s.bytes.length, this.piece()), more = n < s.bytes.length;
    if (!this.fits(n)) return false;
    let flag = 0, left: number | undefined, md: Uint8Array | undefined;
    if (this.v2) {
      if (s.none) flag |= Flag.NoData;
      if (more) flag |= Flag.More;
      if (!this.opened) {
        flag |= Flag.Open;
        left = this.limit.left;
      }
      if (!this.sentMetadata && this.out) {
        md = this.out;
        this.sentMetadata = true;
      }
      if (!this.link.has(Feature.Metadata)) left = md = undefined;
      this.credit -= n;
      this.link.streams.credit -= n;
    }
    this.opened = true;
    const last = s.last && !more;
    this.link.send(
      makeFrame(Cmd.Stream | this.bit | (last ? Cmd.Last : 0), flag, this.seq, this.method, s.bytes.subarray(0, n), left, md));
    if (more) {
      s.bytes = s.bytes.subarray(n);
      return true;
    }
    this.outbox.shift();
    if (last) {
      this.sendEnd = true;
      this.ended();
    }
    s.done();
    return true;
  }

  /** @internal */
  addCredit(n: number): void {
    this.credit += n;
    if (this.credit > 0x7fffffff) throw malformed('CREDIT');
  }

  /** Runs the handler of a stream that the peer has opened. @internal */
  async run(route: StreamRoute, left: number | undefined): Promise<void> {
    const deadline = left === undefined ? undefined : Date.now() + left;
    try {
      await route.handler(this as Stream, { signal: this.signal, metadata: this.md, deadline });
      await this.closeSend();
      this.handled();
    } catch (e) {
      this.reset(e);
    }
  }

  private handled(): void {
    const e = new ArpcError(Code.Canceled, "the stream's handler has returned");
    if (this.v2) this.reset(e);
    this.drop(); // version 1 cannot say so
    this.control.abort(e);
  }
}

type AnyStream = Stream<never, never>;

/** The streams of a connection, and the credit that they share. */
export class Streams {
  credit: number;
  readonly senders = new Set<AnyStream>();
  private readonly mine = new Map<Seq, AnyStream>();
  private readonly theirs = new Map<Seq, AnyStream>();
  private window: number;
  private owed = 0;
  private pumping = false;
  private timer?: ReturnType<typeof setTimeout>;

  constructor(private readonly link: Link) {
    this.credit = link.peer?.windows ?? 0;
    this.window = link.ours.windows;
  }

  get size(): number {
    return this.mine.size + this.theirs.size;
  }

  open<In, Out>(seq: Seq, method: Uint8Array, as: As | undefined, timeout?: number, signal?: AbortSignal, md?: Uint8Array): Stream<In, Out> {
    if (this.mine.size >= Math.min(this.link.ours.streams, this.link.peer?.streams ?? Infinity)) {
      throw exhausted('too many streams on the connection');
    }
    const s = new Stream<In, Out>(this.link, seq, method, true, as, timeout, signal, md);
    if (!s.signal.aborted) this.mine.set(seq, s as AnyStream);
    return s;
  }

  remove(own: boolean, seq: Seq): void {
    (own ? this.mine : this.theirs).delete(seq);
    this.link.rest();
  }

  /** Sends what may be sent: streams take turns, a frame each. */
  pump(): void {
    if (this.pumping) return; // within a turn
    this.pumping = true;
    for (let sent = true; sent;) {
      sent = false;
      for (const s of this.senders) sent = s.pumpOne() || sent;
    }
    this.pumping = false;
    // A WebSocket does not tell when it has sent something.
    if (this.senders.size && this.link.buffered >= Bound.Socket) this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.pump();
    }, 5);
  }

  /** Handles a stream frame. */
  frame(f: Frame, routes: ReadonlyMap<string, StreamRoute>): void {
    const v2 = this.link.has(Feature.Streams), n = f.payload.length, flag = f.flag;
    const fromOpener = f.cmd & Cmd.Own;
    let s = (fromOpener ? this.theirs : this.mine).get(f.seq);
    if (v2) {
      if ((flag & Flag.NoData && n) || (flag & Flag.More && f.cmd & Cmd.Last) || (s && flag & Flag.Open)) throw malformed('stream');
      this.window -= n;
      if (this.window < 0) throw exhausted('the peer sent more on its streams than it may');
    }
    if (s) {
      s.arrived(f);
      return;
    }
    const route = routes.get(text(f.method));
    if (!fromOpener || (v2 ? !(flag & Flag.Open) : !route)) {
      this.gaveBack(n);
      return;
    }
    if (!route || this.theirs.size >= this.link.ours.streams) {
      this.gaveBack(n);
      const e = route ? exhausted('too many streams on the connection') : new ArpcError(Code.Unimplemented, 'there is no such stream handler');
      if (v2) this.link.control(Cmd.Reset, Flag.Error | Flag.Coded, f.seq, encodeError(e, this.link.client.codec));
      return;
    }
    s = new Stream(this.link, f.seq, f.method.slice(), false, route.as, f.left, undefined, f.metadata);
    this.theirs.set(f.seq, s);
    s.arrived(f);
    void s.run(route, f.left);
  }

  /** Handles CREDIT and RESET. */
  controlFrame(f: Frame): void {
    const s = (f.cmd & Cmd.Own ? this.theirs : this.mine).get(f.seq);
    if ((f.cmd & Cmd.Mask) === Cmd.Reset) {
      s?.lost(decodeError(f.payload, this.link.client.codec));
      return;
    }
    if (f.payload.length !== 4) throw malformed('CREDIT');
    const n = view(f.payload).getUint32(0, true);
    if (!f.seq) {
      this.credit += n;
      if (this.credit > 0x7fffffff) throw malformed('CREDIT');
    } else {
      s?.addCredit(n);
    }
    this.pump();
  }

  /** Counts n bytes as taken, of all streams. */
  gaveBack(n: number): void {
    this.owed += n;
    if (!this.link.has(Feature.Streams) || !n || this.owed < this.link.ours.windows / 2) return;
    this.window += this.owed;
    this.sendCredit(Cmd.Credit, 0, this.owed);
    this.owed = 0;
  }

  sendCredit(cmd: number, seq: Seq, n: number): void {
    const b = new Uint8Array(4);
    view(b).setUint32(0, n, true);
    this.link.control(cmd, 0, seq, b);
  }

  /** Ends all of them with the connection. */
  end(e: ArpcError): void {
    clearTimeout(this.timer);
    for (const s of [...this.mine.values(), ...this.theirs.values()]) s.lost(e);
  }
}

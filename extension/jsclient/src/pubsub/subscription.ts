// A subscription: what it has got from the server, and where it goes on when it has to begin again.
//
//   asking --answer, start--> begun --connection lost, hole, again, overflow--> asking
//      |                        |
//      +-- refused, ended by the server, unsubscribed, aborted, client closed --> over

import { ArpcError, Code, form, type As, type Codec } from '../index.js';
import type { PubSub } from './pubsub.js';
import { Queue, type Policy, type SubscriptionEvent } from './queue.js';
import { Kind, type Message, type Position, type Raw, type WireEvent } from './wire.js';

/** Sizes are in bytes. */
export interface SubscribeOptions {
  /** Begins after a place in the topic's history, such as that of the last message which was dealt with before the page was reloaded. */
  from?: Position | undefined;
  /** Begins with the last so many messages of the topic's history. */
  last?: number;
  /** Makes it one of a group: each message goes to one subscription of it, of all connections to all servers. A group has no history. */
  group?: string;
  /** Default 'drop_oldest'. */
  policy?: Policy;
  /**
   * How many messages may wait here; what arrives together counts together. Default 10,000. If given, as many may wait at the
   * server, within its own limit.
   */
  queue?: number;
  /** How much may wait here, default 16 MiB. */
  queueBytes?: number;
  /** Asks for the events 'joined' and 'left'. The topic must have presence. */
  presence?: boolean;
  /** Makes the subscription a member of its topic, and is what it says about itself: any JSON. */
  join?: unknown;
  /** The form of the values; see As. */
  as?: As;
  /** Ends the subscription when aborted: the loop throws. */
  signal?: AbortSignal | undefined;
  /**
   * Gets what happens beside messages, in its place between them: the loop goes on when a promise that it returns is settled, and
   * throws what it throws. Without a loop it gets nothing.
   */
  onEvent?: (event: SubscriptionEvent) => unknown;
}

/** What a subscription has counted. */
export interface SubscriptionStats {
  /** Messages that have arrived, each once. */
  received: number;
  /** What waits for the loop. */
  waiting: number;
  /** What was dropped at the server. */
  lost: number;
  /** What was dropped here. */
  dropped: number;
  /** What was replaced here by something newer with its key. */
  conflated: number;
}

/** How long the server may take to answer, in milliseconds. */
export const patience = 10_000;

/** The waits before it is asked again on a connection that stands. */
const enum Pause {
  Min = 20,
  Max = 5000,
}

/** Codes of what would fail again. */
const final = [Code.InvalidArgument, Code.PermissionDenied, Code.Unimplemented, Code.FailedPrecondition, Code.NotFound];

/** Where one is after a beginning at a place. After a recovery, what was before the place has come already. */
const begin = (at: Position | undefined, place: Position | undefined, recovered: boolean): Position | undefined =>
  recovered && at && at.epoch === place?.epoch && at.offset >= place.offset ? at : place;

/** A message with its value. */
export function decoded<T>(m: Raw, codec: Codec): Message<T> {
  try {
    return { ...m, value: codec.decode(m.data) as T };
  } catch (e) {
    throw new ArpcError(Code.Internal, 'malformed message: ' + (e as Error).message, { cause: e });
  }
}

/** A subscription, which is received by for await. The loop ends with the subscription, and the subscription with the loop. */
export class Subscription<T = unknown> implements AsyncIterable<Message<T>> {
  /** Settled when the server has answered; rejected if it refuses, or when the subscription ends before that. */
  readonly ready: Promise<void>;
  /** The ID as a member of the topic, which each connection has anew; undefined without join. */
  member: string | undefined;
  /** The place after the last message that the loop has got; undefined without history. A later from goes on from there. */
  position: Position | undefined;

  /** The server's number for its messages. @internal */
  id: number | undefined;

  private accept!: () => void;
  private refuse!: (e: ArpcError) => void;
  private readonly inbox: Queue;
  private readonly codec: Codec;
  private seen: Position | undefined; // of the last message that has arrived
  private resumes: boolean; // seen is a place that the server knows
  private accepted = false;
  private begun = false;
  private behind = false; // something is missing: until the next start messages do not count, as they will come again
  private full = false; // the server was told to stop, until the loop has taken what waits
  private told = 0; // messages that the server has said are lost, and that have not been missed yet
  private received = 0;
  private lost = 0;
  private asking = false;
  private stale = false;
  private pause: number = Pause.Min;
  private retry?: ReturnType<typeof setTimeout>;
  private over = false;
  private why: ArpcError | undefined;
  private wakes: (() => void)[] = [];

  /** @internal */
  constructor(
    private readonly pubsub: PubSub, readonly topic: string, /** @internal */ readonly token: number, private readonly options: SubscribeOptions,
  ) {
    this.position = this.seen = options.from;
    this.resumes = !!options.from;
    this.codec = form(options.as, pubsub.client.codec);
    this.inbox = new Queue(options.policy ?? 'drop_oldest', options.queue || 10_000, options.queueBytes ?? 1 << 24);
    this.ready = new Promise((resolve, reject) => {
      this.accept = resolve;
      this.refuse = reject;
    });
    this.ready.catch(() => {}); // the loop throws it too
  }

  /** Begins. @internal */
  start(): void {
    const { signal } = this.options;
    if (signal?.aborted) this.onAbort();
    else signal?.addEventListener('abort', this.onAbort);
    if (this.pubsub.client.state === 'closed') this.end(new ArpcError(Code.Unavailable, 'client closed'));
    void this.ask();
  }

  get stats(): SubscriptionStats {
    const { size, dropped, conflated } = this.inbox;
    return { received: this.received, waiting: size, lost: this.lost, dropped, conflated };
  }

  /** Ends the subscription, and its loop: what waits is discarded. */
  unsubscribe(): void {
    this.leave(new ArpcError(Code.Canceled, 'unsubscribed'), true);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Message<T>, void, void> {
    try {
      for (;;) {
        const what = this.inbox.take();
        if (!what) {
          if (this.full) {
            this.full = false;
            this.behind = this.resumes; // what the server has sent before it has heard
            void this.ask();
          }
          if (this.why) throw this.why;
          if (this.over) return;
          await new Promise<void>((resolve) => this.wakes.push(resolve));
        } else if ('kind' in what) {
          if (what.kind === 'subscribed') this.position = begin(this.position, what.position, what.recovered);
          await this.options.onEvent?.(what);
        } else {
          this.position = what.position ?? this.position;
          let m: Message<T>;
          try {
            m = decoded(what, this.codec);
          } catch (e) {
            await this.options.onEvent?.({ kind: 'malformed', error: e as ArpcError, message: { ...what, value: undefined } });
            continue;
          }
          yield m;
        }
      }
    } finally {
      this.unsubscribe();
    }
  }

  /** Asks the server to begin where the subscription is: now, or when there is a connection. @internal */
  async ask(): Promise<void> {
    this.stale = true;
    if (this.asking) return;
    this.asking = true;
    clearTimeout(this.retry);
    while (this.stale && !this.over && !this.full && this.pubsub.client.state === 'open') {
      this.stale = false;
      const { last, group, policy, queue, presence, join } = this.options;
      try {
        const { member } = await this.pubsub.request('ps.sub', {
          topic: this.topic, token: this.token, from: this.resumes ? this.seen : undefined, last: this.begun ? undefined : last, group,
          overflow: policy, queue, presence, join: join !== undefined || undefined, info: join,
        }, { as: 'json', timeout: patience }) as { member?: string };
        this.member = member;
        this.accepted = true;
        this.pause = Pause.Min;
        this.accept();
      } catch (e) {
        const { code, remote } = e as ArpcError;
        if (final.includes(code) || (remote && !this.accepted)) {
          this.end(e as ArpcError);
        } else {
          this.retry = setTimeout(() => void this.ask(), this.pause);
          this.pause = Math.min(2 * this.pause, Pause.Max);
        }
      }
    }
    this.asking = false;
  }

  /** Handles what the server says. @internal */
  heard(e: WireEvent, size: number): void {
    const { kind } = e;
    if (kind === Kind.Message) {
      if (!this.full) this.take(e, e.message!, size);
    } else if (kind === Kind.Start) {
      const recovered = !!e.recovered, resumed = this.resumes || this.begun;
      this.seen = begin(this.seen, e.position, recovered);
      this.resumes = !!this.seen;
      this.begun = true;
      this.behind = false;
      this.told = 0;
      this.inbox.note({ kind: 'subscribed', resumed, recovered, position: e.position });
    } else if (kind === Kind.Lost) {
      if (!this.full) { // else it will come again, or the next start says that it does not
        this.told += e.count!;
        this.lost += e.count!;
        this.inbox.note({ kind: 'lost', count: e.count! });
      }
    } else if (kind === Kind.Joined || kind === Kind.Left) {
      this.put({ kind: kind === Kind.Joined ? 'joined' : 'left', member: e.member! }, size, '');
    } else if (kind === Kind.Interrupted || kind === Kind.Again) {
      this.behind = this.resumes; // what comes before the next start is after what is missing
      if (kind === Kind.Again) void this.ask();
      else this.inbox.note({ kind: 'interrupted', error: new ArpcError(Code.Unavailable, e.words!, { remote: true }) });
    } else if (kind === Kind.Ended) {
      this.end(new ArpcError(e.code!, e.words!, { remote: true }));
    }
    this.wake();
  }

  /** Ends it from the server's side: the loop gets what waits, and then the error. @internal */
  end(e: ArpcError): void {
    if (this.over) return;
    this.over = true;
    this.why = e;
    this.pubsub.forget(this);
    this.options.signal?.removeEventListener('abort', this.onAbort);
    clearTimeout(this.retry);
    this.refuse(e);
    this.wake();
  }

  private onAbort = (): void => {
    const reason: unknown = this.options.signal!.reason, { name, message = String(reason) } = (reason ?? {}) as Partial<Error>;
    this.leave(reason instanceof ArpcError ? reason : new ArpcError(name === 'TimeoutError' ? Code.DeadlineExceeded : Code.Canceled, message, { cause: reason }));
  };

  /** Ends it from this side. */
  private leave(e: ArpcError, quietly = false): void {
    if (!this.over) {
      this.quit();
      this.end(e);
    }
    if (quietly) this.why = undefined;
    this.inbox.clear();
  }

  private quit(): void {
    // Without a connection there is no subscription, and one that waits for the next would end what that begins.
    if (this.pubsub.client.state === 'open') this.pubsub.client.notify('ps.unsub', { token: this.token }, { as: 'json' });
  }

  private take(e: WireEvent, m: Raw, size: number): void {
    const { seen } = this, p = m.position, same = !!p && p.epoch === seen?.epoch;
    if (p) {
      if (this.behind || (same && p.offset <= seen!.offset)) return; // it came by the connection before, too
      if (same && this.missed(e, seen!)) {
        this.behind = true;
        void this.ask();
        return;
      }
    }
    m.topic ||= this.topic;
    if (!this.put(m, size, m.key && m.topic + '\0' + m.key)) return;
    this.received++;
    if (p) {
      this.seen = p;
      this.resumes = true;
    }
  }

  /**
   * Whether messages are missing before one, and nobody has said so: then they were lost between the server's connection and here.
   * With conflate messages are missing all the time.
   */
  private missed({ before = 0, follows }: WireEvent, seen: Position): boolean {
    const n = before - seen.offset;
    if (n <= 0 || this.options.policy === 'conflate') return false;
    const missed = follows ? n > this.told : !this.told; // where offsets are not consecutive they do not say how many
    this.told -= Math.min(n, this.told);
    return missed;
  }

  private put(what: Raw | SubscriptionEvent, size: number, key: string): boolean {
    if (this.full) return false;
    this.full = !this.inbox.push(what, size, key);
    if (this.full) this.quit();
    return !this.full;
  }

  private wake(): void {
    for (const f of this.wakes.splice(0)) f();
  }
}

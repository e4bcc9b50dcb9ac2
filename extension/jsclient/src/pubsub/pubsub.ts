// Publish and subscribe of a client.

import { ArpcError, Code, form, type CallOptions, type Client } from '../index.js';
import { decoded, patience, Subscription, type SubscribeOptions } from './subscription.js';
import { encodePublication, Kind, parseEvent, parsePage, parseReceipt, type Member, type Message, type Position, type Publication, type Receipt } from './wire.js';

export interface PubSubOptions {
  /** What Go's Server.Password wants to hear. It is told on each connection, before anything else. */
  password?: string;
}

export interface PublishOptions extends Publication, CallOptions {}

/** What part of a topic's history is wanted. */
export interface HistoryOptions extends CallOptions {
  /** Begins after a place; without it the last messages are wanted. */
  from?: Position | undefined;
  /** The largest number of messages, the first ones after from; 0, the default, for all that are kept, negative for none, only top. */
  limit?: number;
}

/** A part of a topic's history. */
export interface Page<T = unknown> {
  /** In the order of their offsets. The server may leave out what does not fit into one answer: then the last one is before top. */
  messages: Message<T>[];
  /** The place after the last message of the topic; undefined if it has no history. */
  top: Position | undefined;
  /** from is a place in the epoch of top, and nothing is missing between it and the last message, or top if limit has cut nothing. */
  complete: boolean;
}

/** The last token of each client: what a PubSub has left on the way is not for the next one. */
const tokens = new WeakMap<Client, number>();

/**
 * Publishes and subscribes on a client's connection, and on those that come after it: subscriptions go on from where they were. A
 * client has one PubSub at a time.
 */
export class PubSub {
  private readonly subs = new Map<number, Subscription>(); // by token
  private readonly numbers = new Map<number, Subscription>(); // by the server's number
  private readonly stops: (() => void)[];
  private told: Promise<unknown> | undefined; // the password, on this connection

  constructor(readonly client: Client, private readonly options: PubSubOptions = {}) {
    this.stops = [
      client.handle('ps.event', (b) => this.got(b as Uint8Array), { as: 'bytes' }),
      client.on('state', (state) => {
        if (state === 'open') {
          this.told = undefined;
          this.tell().catch(() => {}); // who calls will learn of it
          for (const s of this.subs.values()) void s.ask();
        } else if (state === 'closed') {
          for (const s of this.subs.values()) s.end(new ArpcError(Code.Unavailable, 'client closed'));
        }
      }),
    ];
  }

  /**
   * Subscribes to a topic, or to all topics that match a pattern: words that dots separate, of which * stands for any one and a last
   * > for any one or more. Without a connection it waits for one.
   */
  subscribe<T = unknown>(topic: string, options: SubscribeOptions = {}): Subscription<T> {
    const token = (tokens.get(this.client) ?? 0) + 1, s = new Subscription<T>(this, topic, token, options);
    tokens.set(this.client, token);
    this.subs.set(token, s);
    s.start();
    return s;
  }

  /**
   * Publishes a value to a topic; when it resolves, the server's engine has it. After an error that is not the server's it is not
   * known whether it was published: with an id it can be repeated.
   */
  async publish(topic: string, value: unknown, options: PublishOptions = {}): Promise<Receipt> {
    let data: Uint8Array;
    try {
      data = form(options.as, this.client.codec).encode(value);
    } catch (e) {
      throw new ArpcError(Code.InvalidArgument, 'cannot encode: ' + (e as Error).message, { cause: e });
    }
    return parseReceipt(await this.request('ps.pub', encodePublication(topic, data, options), { ...options, as: 'bytes' }) as Uint8Array);
  }

  /** Who is present at a topic, in no order. */
  async members(topic: string, options: CallOptions = {}): Promise<Member[]> {
    const all = await this.request('ps.members', { topic }, { ...options, as: 'json' }) as Partial<Member>[];
    return all.map(({ id, info }) => ({ id: id!, info }));
  }

  /** What a topic has kept. */
  async history<T = unknown>(topic: string, options: HistoryOptions = {}): Promise<Page<T>> {
    const { from, limit } = options, codec = form(options.as, this.client.codec), request = JSON.stringify({ topic, from, limit });
    const page = parsePage(await this.request('ps.history', request, { ...options, as: 'bytes' }) as Uint8Array);
    return { ...page, messages: page.messages.map((m) => decoded<T>(m, codec)) };
  }

  /** Ends all subscriptions, and leaves the client to another PubSub. */
  close(): void {
    for (const s of this.subs.values()) s.unsubscribe();
    for (const stop of this.stops) stop();
  }

  /** Calls the server, which knows the password by then. @internal */
  async request(route: string, value: unknown, options: CallOptions): Promise<unknown> {
    if (this.options.password && this.client.state === 'open') await this.tell();
    return this.client.call(route, value, options);
  }

  /** @internal */
  forget(s: Subscription): void {
    this.subs.delete(s.token);
    this.bind(s, undefined);
  }

  /** Notes the server's number for the messages of a subscription. */
  private bind(s: Subscription, id: number | undefined): void {
    if (this.numbers.get(s.id!) === s) this.numbers.delete(s.id!);
    s.id = id;
    if (id !== undefined) this.numbers.set(id, s);
  }

  /** Tells the password, once to each connection. */
  private tell(): Promise<unknown> {
    const { password } = this.options;
    if (!password) return Promise.resolve();
    const told = this.told ??= this.client.call('in_A', password, { as: 'text', timeout: patience });
    told.catch(() => {
      if (this.told === told) this.told = undefined;
    });
    return told;
  }

  private got(b: Uint8Array): void {
    const e = parseEvent(b), { kind, id } = e;
    let s: Subscription | undefined;
    if (kind === Kind.Start) {
      s = this.subs.get(e.token!);
      if (s) this.bind(s, id);
    } else {
      s = (kind === Kind.Lost || kind === Kind.Ended ? this.subs : this.numbers).get(id);
    }
    s?.heard(e, b.length); // otherwise it was unsubscribed meanwhile
  }
}

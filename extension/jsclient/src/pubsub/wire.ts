// The format of docs/pubsub.md: events, publications, receipts and pages. Integers are little-endian.

import { ArpcError, Code } from '../index.js';

/** A place in a topic: after the message that has it. Messages of topics without history have none. */
export interface Position {
  /** Tells one life of a topic's history from the next: offsets of different epochs cannot be compared. */
  epoch: number;
  /** Grows from message to message. */
  offset: number;
}

/** Who is present at a topic. */
export interface Member {
  /** Unique among all members. */
  id: string;
  /** What the member says about itself; undefined for nothing. */
  info: unknown;
}

export const enum Kind {
  Message = 1,
  Start,
  Lost,
  Joined,
  Left,
  Interrupted,
  Again,
  Ended,
}

const enum Flag {
  Topic = 0x01,
  Key = 0x02,
  Position = 0x04,
  Recovered = 0x08,
  ToOne = 0x10,
  Follows = 0x20,
  Before = 0x40,
}

/** A message of a topic. */
export interface Message<T = unknown> {
  /** Where it was published; for a subscription with a pattern, a topic that matches. */
  topic: string;
  /** What was published, decoded as the subscription's as says. */
  value: T;
  /** The bytes of that. */
  data: Uint8Array;
  /** What a newer message replaces it by, or ''. */
  key: string;
  /** When the server got it, by its clock, in milliseconds since 1970. */
  timestamp: number;
  /** Where it is in its topic; undefined without history. */
  position: Position | undefined;
  /** One subscriber gets it. */
  toOne: boolean;
}

/** A message that has not been decoded. */
export type Raw = Omit<Message, 'value'>;

export interface WireEvent {
  kind: number;
  /** The server's number of what the event is about; of Lost and Ended the token. */
  id: number;
  token?: number;
  position?: Position | undefined;
  recovered?: boolean;
  message?: Raw;
  /** The offset of the message before it, if that is known. */
  before?: number | undefined;
  /** Whether offsets are consecutive, so that they count messages. */
  follows?: boolean;
  member?: Member;
  count?: number;
  code?: number;
  words?: string;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Takes fields from the front of bytes; it throws when they are cut short. */
class Reader {
  constructor(private rest: Uint8Array) {}

  take(n = this.rest.length): Uint8Array {
    if (n > this.rest.length) throw new ArpcError(Code.InvalidArgument, 'malformed event');
    const b = this.rest.subarray(0, n);
    this.rest = this.rest.subarray(n);
    return b;
  }

  /** An integer of n bytes; above 2^53 it is rounded. */
  uint(n: number): number {
    return this.take(n).reduceRight((v, b) => v * 256 + b, 0);
  }

  /** A text, of a length that stands before it in n bytes; without n all that is left. */
  string(n?: number): string {
    return decoder.decode(this.take(n && this.uint(n)));
  }

  position(): Position | undefined {
    const epoch = this.uint(8), offset = this.uint(8);
    return epoch || offset ? { epoch, offset } : undefined;
  }

  get more(): boolean {
    return this.rest.length > 0;
  }
}

/** Takes an event apart. Its data is a part of b. */
export function parseEvent(b: Uint8Array): WireEvent {
  const r = new Reader(b), kind = r.uint(1), flags = r.uint(1), e: WireEvent = { kind, id: r.uint(8) };
  const has = (flag: number): boolean => !!(flags & flag);
  if (kind === Kind.Message) {
    const timestamp = r.uint(8) / 1e6, position = has(Flag.Position) ? r.position() : undefined;
    e.follows = !has(Flag.Before);
    e.before = has(Flag.Before) ? r.uint(8) : position && has(Flag.Follows) ? position.offset - 1 : undefined;
    const topic = has(Flag.Topic) ? r.string(2) : '', key = has(Flag.Key) ? r.string(1) : '';
    e.message = { topic, key, timestamp, position, toOne: has(Flag.ToOne), data: r.take() };
  } else if (kind === Kind.Start) {
    e.token = r.uint(4);
    e.recovered = has(Flag.Recovered);
    e.position = has(Flag.Position) ? r.position() : undefined;
  } else if (kind === Kind.Lost) {
    e.count = r.uint(8);
  } else if (kind === Kind.Joined || kind === Kind.Left) {
    r.string(2); // the topic, which the subscription knows
    const id = r.string(1);
    e.member = { id, info: r.more ? JSON.parse(r.string()) : undefined };
  } else if (kind === Kind.Interrupted || kind === Kind.Ended) {
    if (kind === Kind.Ended) e.code = r.uint(1);
    e.words = r.string();
  }
  return e;
}

export interface Publication {
  /** What a newer message replaces it by where subscribers ask for that, see Policy. At most 255 bytes. */
  key?: string;
  /**
   * Of the publications with one ID to one topic within a short while only the first counts, so that one whose outcome is not known
   * can be repeated. At most 255 bytes.
   */
  id?: string;
  /** One subscriber gets it, if there is one, and it is not kept in the history. */
  toOne?: boolean;
}

export function encodePublication(topic: string, data: Uint8Array, { key, id, toOne }: Publication): Uint8Array {
  const out: number[] = [(key ? 1 : 0) | (id ? 2 : 0) | (toOne ? 4 : 0)];
  const add = (what: string, value: string, max: number, ...high: 0[]): void => {
    const b = encoder.encode(value);
    if (b.length > max) throw new ArpcError(Code.InvalidArgument, `${what} of ${b.length} bytes, the limit is ${max}`);
    out.push(b.length & 255, ...high.map(() => b.length >> 8), ...b);
  };
  add('topic', topic, 1024, 0);
  if (key) add('key', key, 255);
  if (id) add('ID', id, 255);
  const b = new Uint8Array(out.length + data.length);
  b.set(out);
  b.set(data, out.length);
  return b;
}

/** What a publisher gets. */
export interface Receipt {
  /** That of the message; undefined on a topic without history. */
  position: Position | undefined;
  /** A message with that ID had been published before: position is its, and nothing was published now. */
  duplicate: boolean;
}

export function parseReceipt(b: Uint8Array): Receipt {
  const r = new Reader(b);
  return r.more ? { position: r.position(), duplicate: !!r.uint(1) } : { position: undefined, duplicate: false };
}

export function parsePage(b: Uint8Array): { messages: Raw[]; top: Position | undefined; complete: boolean } {
  const r = new Reader(b), page = { top: r.position(), complete: !!r.uint(1), messages: [] as Raw[] };
  while (r.more) {
    const { message } = parseEvent(r.take(r.uint(4)));
    if (message) page.messages.push(message);
  }
  return page;
}

// Publish and subscribe, against the real Go server.

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { ArpcError, Code, json, type Client, type ClientOptions } from '@arpc-go/arpc';
import { PubSub, type Message, type Position, type Subscribed, type SubscribeOptions, type Subscription, type SubscriptionEvent } from '@arpc-go/arpc/pubsub';
import { connect, event, failure, later, opened, startServer, type Server } from './helper.js';

let server: Server;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server.kill());

let topics = 0;
/** A topic that no other test has, of a kind; see the server. */
const fresh = (kind: string): string => `${kind}.${++topics}`;

const pubsub = (url = server.url, options: ClientOptions = {}, password?: string): PubSub => new PubSub(connect(url, options), password ? { password } : {});

/** A subscription whose messages and events are taken one by one. */
class Probe<T = unknown> {
  readonly events: SubscriptionEvent[] = [];
  readonly sub: Subscription<T>;
  private readonly loop: AsyncIterator<Message<T>>;

  constructor(p: PubSub, topic: string, options: SubscribeOptions = {}) {
    this.sub = p.subscribe<T>(topic, { onEvent: (e) => this.events.push(e), ...options });
    this.loop = this.sub[Symbol.asyncIterator]();
  }

  async next(): Promise<Message<T>> {
    const { value, done } = await this.loop.next();
    if (done) throw new Error('the loop has ended');
    return value;
  }

  async values(n: number): Promise<T[]> {
    const out: T[] = [];
    while (out.length < n) out.push((await this.next()).value);
    return out;
  }

  done = (): Promise<IteratorResult<Message<T>>> => this.loop.next();

  get starts(): [resumed: boolean, recovered: boolean][] {
    return this.events.filter((e): e is Subscribed => e.kind === 'subscribed').map((e) => [e.resumed, e.recovered]);
  }

  get lost(): number {
    return this.events.reduce((n, e) => n + (e.kind === 'lost' ? e.count : 0), 0);
  }
}

const probe = async <T = unknown>(p: PubSub, topic: string, options?: SubscribeOptions): Promise<Probe<T>> => {
  const s = new Probe<T>(p, topic, options);
  await s.sub.ready;
  return s;
};

const upTo = (n: number, from = 0): number[] => Array.from({ length: n - from }, (_, i) => from + i);
/** Makes the server publish 0, 1, 2 and so on. */
const publish = (c: Client, Topic: string, Count: number, Key = ''): Promise<unknown> => c.call('/publish', { Topic, Count, Key });
const lose = (c: Client): Promise<unknown> => {
  const lost = event(c, 'close');
  void c.call('/kick').catch(() => {});
  return lost;
};

/** A client that connects again only when it is let. */
function gated(url: string): { client: Client; close: () => void; open: () => void } {
  let gate = later();
  gate.resolve();
  const client = connect(url, { token: async () => (await gate.promise, 'good') });
  return { client, close: () => void (gate = later()), open: () => gate.resolve() };
}

describe('delivery', () => {
  test('a message and what it has', async () => {
    const p = pubsub(), topic = fresh('plain'), s = await probe(p, topic), before = Date.now();
    expect(await p.publish(topic, { a: [1, null] }, { key: 'k' })).toEqual({ position: undefined, duplicate: false });
    const m = await s.next();
    expect(m).toEqual({ topic, value: { a: [1, null] }, data: json.encode({ a: [1, null] }), key: 'k', timestamp: m.timestamp, position: undefined, toOne: false });
    expect(Math.abs(m.timestamp - before)).toBeLessThan(60_000);
    expect(s.starts).toEqual([[false, false]]);
    expect(s.sub.position).toBe(undefined);
    await p.publish(topic, 'to you', { toOne: true });
    expect(await s.next()).toMatchObject({ value: 'to you', toOne: true });
  });
  test('values and their forms', async () => {
    const p = pubsub(), topic = fresh('plain');
    const plain = await probe(p, topic), exact = await probe(p, topic, { as: 'json' }), bytes = await probe<Uint8Array>(p, topic, { as: 'bytes' });
    for (const v of [0, false, null, '', '12', 'é 🦊', [], { a: 1 }]) await p.publish(topic, v, { as: 'json' });
    expect(await exact.values(8)).toEqual([0, false, null, '', '12', 'é 🦊', [], { a: 1 }]);
    expect(await plain.values(8)).toEqual([0, false, null, '', '12', 'é 🦊', [], { a: 1 }]);
    expect(String(Buffer.from((await bytes.values(3))[2]!))).toBe('null');
    await p.publish(topic, 'no JSON');
    await p.publish(topic, Uint8Array.of(34, 49, 34));
    expect(await plain.values(2)).toEqual(['no JSON', '1']);
    expect(await exact.values(1)).toEqual(['1']); // the other one is told of
    expect(exact.events.at(-1)).toMatchObject({ kind: 'malformed', error: { code: Code.Internal }, message: { topic, value: undefined } });
  });
  test('patterns, groups and several subscriptions of a connection', async () => {
    const p = pubsub(), base = fresh('plain');
    const star = await probe(p, base + '.*'), rest = await probe(p, base + '.>'), one = await probe(p, base + '.a'), same = await probe(p, base + '.a');
    const group = [await probe(p, base + '.a', { group: 'g' }), await probe(p, base + '.a', { group: 'g' })];
    await p.publish(base + '.a', 1);
    await p.publish(base + '.a.b', 2);
    await p.publish(base + '.a', 3);
    expect([await one.values(2), await same.values(2), await star.values(2)]).toEqual([[1, 3], [1, 3], [1, 3]]);
    expect([(await rest.next()).topic, (await rest.next()).topic]).toEqual([base + '.a', base + '.a.b']);
    await expect.poll(() => group.reduce((n, g) => n + g.sub.stats.received, 0)).toBe(2);
  });
  test('from, last, history and receipts', async () => {
    const p = pubsub(), topic = fresh('kept'), at: Position[] = [];
    for (const i of upTo(5)) at.push((await p.publish(topic, i, { id: `m${i}` })).position!);
    expect(await p.publish(topic, 'again', { id: 'm3' })).toEqual({ position: at[3], duplicate: true });
    const from = await probe(p, topic, { from: at[1] }), last = await probe(p, topic, { last: 2 }), now = await probe(p, topic);
    await p.publish(topic, 5);
    expect([await from.values(4), await last.values(3), await now.values(1)]).toEqual([[2, 3, 4, 5], [3, 4, 5], [5]]);
    expect([from.starts, last.starts, now.starts]).toEqual([[[true, true]], [[false, false]], [[false, false]]]);
    expect(now.sub.position).toEqual({ epoch: at[0]!.epoch, offset: at[4]!.offset + 1 });

    const page = await p.history(topic, { from: at[2]!, limit: 2 });
    expect(page).toMatchObject({ complete: true, top: now.sub.position, messages: [{ topic, value: 3, position: at[3] }, { value: 4 }] });
    expect((await p.history(topic)).messages.map((m) => m.value)).toEqual(upTo(6));
    expect(await p.history(topic, { limit: -1 })).toMatchObject({ messages: [], top: now.sub.position });
    expect(await p.history(fresh('plain'))).toEqual({ messages: [], top: undefined, complete: false });
    const wrong = await probe(p, topic, { from: { epoch: at[0]!.epoch + 1, offset: 2 } });
    await wrong.values(6);
    expect(wrong.starts).toEqual([[true, false]]);
  });
  test('the last value', async () => {
    const p = pubsub(), topic = fresh('last');
    await p.publish(topic, 1);
    await p.publish(topic, 2);
    expect(await (await probe(p, topic)).values(1)).toEqual([2]);
  });
  test('presence', async () => {
    const topic = fresh('there'), watcher = pubsub(), guest = pubsub();
    const w = await probe(watcher, topic, { presence: true, join: { name: 'w' } });
    const g = await probe(guest, topic, { join: null });
    const all = [{ id: w.sub.member, info: { name: 'w' } }, { id: g.sub.member, info: null }].sort((a, b) => (a.id! < b.id! ? -1 : 1));
    expect((await watcher.members(topic)).sort((a, b) => (a.id < b.id ? -1 : 1))).toEqual(all);
    g.sub.unsubscribe();
    await guest.publish(topic, 'over'); // the server has told of that before
    await w.next();
    expect(w.events.slice(1).filter((e) => e.kind !== 'joined' || e.member.id !== w.sub.member)).toMatchObject([
      { kind: 'joined', member: { id: g.sub.member } }, { kind: 'left', member: { id: g.sub.member } },
    ]);
    expect(await watcher.members(topic)).toHaveLength(1);
  });
});

describe('the loop', () => {
  const gone = (p: PubSub): Promise<void> => expect.poll(() => p.client.call('/subscriptions')).toBe(0);

  test('unsubscribes when it is left', async () => {
    const mine = await startServer();
    const p = pubsub(mine.url), topic = fresh('plain'), sub = p.subscribe(topic);
    await sub.ready;
    expect(await p.client.call('/subscriptions')).toBe(1);
    await publish(p.client, topic, 5);
    for await (const { value } of sub) if (value === 2) break;
    await gone(p);
    for await (const m of sub) throw new Error(`got ${m.value as string}`);

    const thrown = p.subscribe(topic, { onEvent: () => Promise.reject(new Error('mine')) });
    await expect((async () => {
      for await (const m of thrown) throw new Error(`got ${m.value as string}`);
    })()).rejects.toThrow('mine');
    await gone(p);
    await mine.kill();
  });
  test('ends by unsubscribe, also while it waits', async () => {
    const p = pubsub(), topic = fresh('plain'), s = await probe(p, topic), end = s.done();
    s.sub.unsubscribe();
    expect(await end).toEqual({ done: true, value: undefined });
    const early = p.subscribe(topic);
    early.unsubscribe();
    expect((await failure(early.ready, Code.Canceled)).message).toBe('unsubscribed');
  });
  test('throws when the signal is aborted', async () => {
    const mine = await startServer();
    const p = pubsub(mine.url), topic = fresh('plain'), stop = new AbortController(), s = await probe(p, topic, { signal: stop.signal });
    await p.publish(topic, 1);
    await s.next();
    await p.publish(topic, 2); // is discarded
    const late = s.done();
    if ((await late).value?.value !== 2) throw new Error('not 2');
    const end = s.done();
    stop.abort();
    await failure(end, Code.Canceled);
    await gone(p);
    const before = new Probe(p, topic, { signal: AbortSignal.abort(new ArpcError(Code.Aborted, 'mine')) });
    expect((await failure(before.done(), Code.Aborted)).message).toBe('mine');
    const never = new PubSub(connect('ws://127.0.0.1:1/')).subscribe(topic, { signal: AbortSignal.timeout(20) });
    await failure(never.ready, Code.DeadlineExceeded);
    await mine.kill();
  });
  test('throws what ended it at the server, after the messages', async () => {
    const p = pubsub(), topic = fresh('plain'), s = await probe(p, topic);
    await p.publish(topic, 1);
    await expect.poll(() => s.sub.stats.received).toBe(1);
    await p.client.call('/revoke', topic);
    expect(await s.values(1)).toEqual([1]);
    expect((await failure(s.done(), Code.PermissionDenied)).remote).toBe(true);
    await s.sub.ready;
  });
  test('throws when the client is closed', async () => {
    const p = pubsub(), s = await probe(p, fresh('plain')), end = s.done();
    p.client.close();
    await failure(end, Code.Unavailable);
    await failure(p.subscribe('x').ready, Code.Unavailable);
    await failure(p.publish('x', 1), Code.Unavailable);
  });
  test('a client has one PubSub at a time', async () => {
    const p = pubsub(), s = await probe(p, fresh('plain')), end = s.done();
    await failure(() => new PubSub(p.client), Code.AlreadyExists);
    p.close();
    expect((await end).done).toBe(true);
    await probe(new PubSub(p.client), fresh('plain'));
  });
});

describe('what is refused', () => {
  test('names, options and permissions', async () => {
    const p = pubsub(), long = 'x'.repeat(1025);
    for (const [code, topic, options] of [
      [Code.InvalidArgument, '', {}], [Code.InvalidArgument, long, {}], [Code.InvalidArgument, 'a.>.b', {}],
      [Code.InvalidArgument, 'kept.*', { last: 1 }], [Code.InvalidArgument, 'there.*', { presence: true }],
      [Code.InvalidArgument, 'a', { policy: 'never' as never }], [Code.FailedPrecondition, 'plain', { join: {} }],
      [Code.InvalidArgument, 'there', { join: 'x'.repeat(5000) }], [Code.PermissionDenied, 'secret', {}],
    ] as [Code, string, SubscribeOptions][]) {
      const s = new Probe(p, topic, options);
      expect((await failure(s.sub.ready, code)).remote, topic.slice(0, 9)).toBe(true);
      await failure(s.done(), code);
    }
    await failure(p.publish('a.*', 1), Code.InvalidArgument);
    await failure(p.publish(long, 1), Code.InvalidArgument);
    await failure(p.publish('a', 1, { key: 'k'.repeat(256) }), Code.InvalidArgument);
    await failure(p.publish('a', 1, { id: 'ö'.repeat(128) }), Code.InvalidArgument);
    const loop: { self?: unknown } = {};
    loop.self = loop;
    await failure(p.publish('a', loop), Code.InvalidArgument);
    await failure(p.publish('readonly', 1), Code.PermissionDenied);
    await failure(p.history('secret'), Code.PermissionDenied);
    await failure(p.members('secret'), Code.PermissionDenied);
    expect(await p.publish('k'.repeat(1024), 1, { key: 'k'.repeat(255), id: 'i'.repeat(255) })).toEqual({ position: undefined, duplicate: false });
  });
  test('passwords', async () => {
    const mine = await startServer('-password', 'öpen');
    expect((await failure(pubsub(mine.url).subscribe('a').ready, Code.Unauthenticated)).message).toContain('not authenticated');
    await failure(pubsub(mine.url).publish('a', 1), Code.Unauthenticated);
    const wrong = pubsub(mine.url, {}, 'closed');
    for (const p of [wrong.subscribe('a').ready, wrong.publish('a', 1), wrong.members('a')]) {
      expect((await failure(p, Code.Unauthenticated)).message).toMatch(/invalid password|not authenticated/);
    }
    await opened(wrong.client);
    expect((await failure(wrong.subscribe('a').ready, Code.Unauthenticated)).message).toBe('invalid password');

    const right = pubsub(mine.url, {}, 'öpen'), s = new Probe(right, 'a');
    await right.publish('kept.a', 1); // waits for the connection
    await s.sub.ready;
    await lose(right.client);
    await opened(right.client);
    await right.publish('a', 2);
    await expect.poll(() => s.sub.stats.received).toBeGreaterThan(0);
    expect((await s.next()).value).toBe(2);
    await mine.kill();
  });
});

describe('recovery', () => {
  let auth: Server;
  beforeAll(async () => {
    auth = await startServer('-auth');
  });
  afterAll(() => auth.kill());

  test('what was missed comes, in order and once', async () => {
    const { client, close, open } = gated(auth.url), other = await opened(gated(auth.url).client);
    const p = new PubSub(client), topic = fresh('kept'), s = await probe(p, topic), none = await probe(p, fresh('plain'));
    await publish(other, topic, 10);
    expect(await s.values(10)).toEqual(upTo(10));
    for (let round = 0; round < 3; round++) {
      close();
      await lose(client);
      await publish(other, topic, 2000);
      open();
      expect(await s.values(2000)).toEqual(upTo(2000));
    }
    expect(s.starts).toEqual([[false, false], [true, true], [true, true], [true, true]]);
    expect(s.sub.stats).toMatchObject({ received: 6010, waiting: 0, lost: 0, dropped: 0 });

    // A subscription that begins without a connection waits for one, and one without history does not claim anything.
    close();
    await lose(client);
    const waits = new Probe(p, topic, { from: s.sub.position });
    await publish(other, topic, 2);
    open();
    expect(await waits.values(2)).toEqual([0, 1]);
    await p.publish(none.sub.topic, 'x');
    await none.values(1);
    expect([waits.starts, none.starts.at(-1)]).toEqual([[[true, true]], [true, false]]);
  });
  test('what the history has forgotten is told of', async () => {
    const { client, close, open } = gated(auth.url), other = gated(auth.url).client, p = new PubSub(client), topic = fresh('few');
    const s = await probe(p, topic);
    await publish(other, topic, 2);
    await s.values(2);
    close();
    await lose(client);
    await publish(other, topic, 10);
    open();
    expect(await s.values(3)).toEqual([7, 8, 9]);
    expect(s.starts).toEqual([[false, false], [true, false]]);
  });
  test('a restarted server has another history', async () => {
    const first = await startServer(), p = pubsub(first.url), topic = fresh('kept'), s = await probe(p, topic);
    await publish(p.client, topic, 3);
    await s.values(3);
    const position = s.sub.position!;
    await first.kill();
    const second = await startServer('-addr', first.addr);
    await publish(await opened(connect(second.url)), topic, 1);
    const end = s.next();
    await expect.poll(() => p.client.state).toBe('open');
    await p.publish(topic, 'new');
    // Whether the first message of the new history comes depends on when the subscription begins again; the gap is told in any case.
    let m = await end;
    while (m.value !== 'new') m = await s.next();
    expect(s.starts).toEqual([[false, false], [true, false]]);
    expect(m.position!.epoch).not.toBe(position.epoch);
    await second.kill();
  });
  test('connections that end all the time', async () => {
    const p = pubsub(), topic = fresh('kept'), all = 3000, publisher = pubsub();
    const subs = [await probe<number>(p, topic), await probe<number>(p, topic, { policy: 'disconnect', queue: 20 })];
    let published = false;
    const losing = (async () => {
      while (!published) {
        await opened(p.client);
        await lose(p.client);
      }
    })();
    const got = subs.map((s) => s.values(all));
    for (let i = 0; i < all;) {
      await Promise.all(Array.from({ length: 50 }, () => publisher.publish(topic, i++)));
    }
    published = true;
    await losing;
    for (const g of got) expect(await g).toEqual(upTo(all));
    for (const s of subs) {
      expect(s.starts.length).toBeGreaterThan(1);
      expect(s.starts.slice(1).every(([resumed, recovered]) => resumed && recovered)).toBe(true);
      expect(s.lost).toBe(0);
    }
  });
  test('a thousand subscriptions', async () => {
    const p = pubsub(), base = fresh('kept'), subs = upTo(1000).map((i) => new Probe(p, `${base}.${i}`));
    await Promise.all(subs.map((s) => s.sub.ready));
    await failure(p.subscribe(base).ready, Code.ResourceExhausted);
    await Promise.all(subs.map((s) => p.publish(s.sub.topic, 1)));
    expect(await Promise.all(subs.map((s) => s.next().then((m) => m.value)))).toEqual(subs.map(() => 1));
    await lose(p.client);
    await opened(p.client);
    await Promise.all(subs.map((s) => p.publish(s.sub.topic, 2)));
    expect(await Promise.all(subs.map((s) => s.next().then((m) => m.value)))).toEqual(subs.map(() => 2));
    for (const s of subs) expect(s.starts).toEqual([[false, false], [true, true]]);
  });
  test('members are there again', async () => {
    const p = pubsub(), topic = fresh('there'), s = await probe(p, topic, { join: 1 }), first = s.sub.member, other = pubsub();
    await lose(p.client);
    await expect.poll(() => s.sub.member !== first && p.client.state === 'open').toBe(true);
    await expect.poll(() => other.members(topic)).toEqual([{ id: s.sub.member, info: 1 }]);
  });
});

describe('a slow loop', () => {
  const all = 100;
  /** A subscription on which as many messages have arrived as there are, and none was taken. */
  async function full(topic: string, options: SubscribeOptions, key = ''): Promise<Probe<number>> {
    const p = pubsub(), s = await probe<number>(p, topic, options), mark = fresh('plain'), end = await probe(p, mark);
    await publish(p.client, topic, all, key);
    await p.publish(mark, 1);
    await end.next();
    await expect.poll(() => s.sub.stats.received + s.sub.stats.lost).toBe(options.policy === 'disconnect' ? options.queue : all);
    return s;
  }

  test('drop_oldest', async () => {
    const s = await full(fresh('kept'), { queue: 10 });
    const { lost, dropped } = s.sub.stats;
    expect([s.sub.stats.waiting, lost + dropped]).toEqual([10, 90]);
    expect(await s.values(10)).toEqual(upTo(100, 90));
    expect([s.lost, s.starts]).toEqual([90, [[false, false]]]);
  });
  test('drop_newest', async () => {
    const topic = fresh('plain'), s = await full(topic, { queue: 10, policy: 'drop_newest' });
    expect(await s.values(10)).toEqual(upTo(10));
    expect(s.lost).toBe(0);
    await pubsub().publish(topic, 'next');
    expect((await s.next()).value).toBe('next');
    expect(s.lost).toBe(90);
  });
  test('conflate', async () => {
    const s = await full(fresh('kept'), { queue: 10, policy: 'conflate' }, 'k');
    expect(s.sub.stats).toMatchObject({ waiting: 1, conflated: 99 });
    expect(await s.values(1)).toEqual([99]);
    expect(s.lost).toBe(0);
  });
  test('disconnect, with history: nothing is missing', async () => {
    const s = await full(fresh('kept'), { queue: 10, policy: 'disconnect' });
    expect(s.sub.stats).toMatchObject({ waiting: 10, dropped: 0 });
    expect(await s.values(all)).toEqual(upTo(all));
    expect(s.starts.slice(1).length).toBeGreaterThan(0);
    expect(s.starts.slice(1).every(([resumed, recovered]) => resumed && recovered)).toBe(true);
  });
  test('disconnect, without history: the gap is told', async () => {
    const topic = fresh('plain'), s = await full(topic, { queue: 10, policy: 'disconnect' });
    expect(await s.values(10)).toEqual(upTo(10));
    const next = s.next(); // begins again
    const p = pubsub();
    await expect.poll(async () => (await p.publish(topic, 'next'), s.starts.length)).toBe(2);
    expect((await next).value).toBe('next');
    expect(s.starts).toEqual([[false, false], [true, false]]);
  });
  test('bytes count too', async () => {
    const p = pubsub(), topic = fresh('plain'), s = await probe<string>(p, topic, { queueBytes: 3500 });
    for (const c of 'abcde') await p.publish(topic, c.repeat(1000));
    await p.publish(topic, 'f'.repeat(10_000)); // larger than the bound: alone
    await expect.poll(() => s.sub.stats.received).toBe(6);
    expect(s.sub.stats).toMatchObject({ waiting: 1, dropped: 5 });
    expect((await s.next()).value[0]).toBe('f');
    expect(s.lost).toBe(5);
  });
});

test('what PubSub does by itself leaves nothing behind', async () => {
  const p = pubsub();
  const errors: unknown[] = [];
  p.client.on('error', (e) => errors.push(e));
  onTestFinished(() => expect(errors).toEqual([]));
  for (let i = 0; i < 20; i++) (await probe(p, fresh('kept'))).sub.unsubscribe();
  await p.publish('x', 1);
});

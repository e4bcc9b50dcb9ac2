// Publish and subscribe against a peer that the test plays: what a server does rarely, or must not do.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Code, type Client, type ClientOptions } from '@arpc-go/arpc';
import { PubSub, type SubscribeOptions, type SubscriptionEvent } from '@arpc-go/arpc/pubsub';
import { ArpcError } from '../src/error.js';
import { Cmd, Flag, utf8 } from '../src/frame.js';
import { Feature } from '../src/hello.js';
import { Queue, type SubscriptionEvent as Event } from '../src/pubsub/queue.js';
import { encodePublication, parseEvent, parsePage, parseReceipt, type Raw } from '../src/pubsub/wire.js';
import { connect, event, failure, hex, unhex } from './helper.js';
import { Peer, type Conn } from './peer.js';

/** Bytes of fields: a number with its length, or bytes. */
const bytes = (...fields: ([value: number, length: number] | Uint8Array | string)[]): Uint8Array => Buffer.concat(fields.map((f) => {
  if (typeof f === 'string') return utf8(f);
  if (f instanceof Uint8Array) return f;
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt(f[0]));
  return b.subarray(0, f[1]);
}));

const epoch = 5;
const start = (token: number, id: number, offset?: number, recovered = false): Uint8Array => offset === undefined
  ? bytes([2, 1], [0, 1], [id, 8], [token, 4]) : bytes([2, 1], [recovered ? 0x0c : 0x04, 1], [id, 8], [token, 4], [epoch, 8], [offset, 8]);
/** A message whose data is its offset; before is given by the flag 0x40, or 0x20 if it is the one before it. */
const message = (id: number, offset: number, before?: number, consecutive = true, e = epoch): Uint8Array => before === undefined
  ? bytes([1, 1], [4, 1], [id, 8], [0, 8], [e, 8], [offset, 8], String(offset))
  : consecutive && before === offset - 1
    ? bytes([1, 1], [0x24, 1], [id, 8], [0, 8], [e, 8], [offset, 8], String(offset))
    : bytes([1, 1], [0x44, 1], [id, 8], [0, 8], [e, 8], [offset, 8], [before, 8], String(offset));
const lost = (token: number, n: number): Uint8Array => bytes([3, 1], [0, 1], [token, 8], [n, 8]);
const about = (kind: number, id: number): Uint8Array => bytes([kind, 1], [0, 1], [id, 8]);

class Server {
  constructor(readonly conn: Conn) {}

  tell(...events: Uint8Array[]): void {
    for (const e of events) this.conn.send(Cmd.Notify, 0, 0, 'ps.event', e);
  }

  /** The next request, decoded; it is answered. */
  async asked(method = 'ps.sub', answer = '{}'): Promise<Record<string, unknown>> {
    const f = await this.conn.next();
    if (f.method !== method) throw new Error(`${f.method} ${String(Buffer.from(f.rest))}`);
    if (f.cmd === Cmd.Request) this.conn.send(Cmd.Response, 0, f.seq, method, answer);
    return JSON.parse(String(Buffer.from(f.rest))) as Record<string, unknown>;
  }

  /** Waits until the client has handled what was sent to it, and makes sure that it has sent nothing else. */
  async quiet(): Promise<void> {
    this.conn.send(Cmd.Ping, 0, 0, '');
    const f = await this.conn.next();
    if (f.cmd !== Cmd.Pong) throw new Error(`unexpected ${f.method} ${String(Buffer.from(f.rest))}`);
  }
}

/** A subscription that a peer has accepted; what the loop gets is collected. */
async function subscribed(options: SubscribeOptions = {}, clientOptions: ClientOptions = {}): Promise<{
  client: Client; peer: Peer; server: Server; got: number[]; events: SubscriptionEvent[]; request: Record<string, unknown>; end: Promise<void>; p: PubSub;
}> {
  const peer = await Peer.start(), client = connect(peer.url, { version: 1, ...clientOptions }), p = new PubSub(client);
  const events: SubscriptionEvent[] = [], got: number[] = [], sub = p.subscribe<number>('t', { onEvent: (e) => events.push(e), ...options });
  const end = (async () => {
    for await (const m of sub) got.push(m.value);
  })();
  end.catch(() => {});
  const server = new Server(await peer.accept()), request = await server.asked();
  await sub.ready;
  return { client, peer, server, got, events, request, end, p };
}

describe('holes', () => {
  test('what nobody has told of is asked for', async () => {
    const { server, got, events } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 11, 10), message(7, 13, 12), message(7, 14, 13), message(7, 12, 11));
    expect(await server.asked()).toMatchObject({ token: 1, from: { epoch, offset: 11 } });
    await server.quiet();
    expect(got).toEqual([11]);
    server.tell(start(1, 7, 11, true), message(7, 12), message(7, 13), message(7, 14), message(7, 14, 13), message(7, 15, 14));
    await server.quiet();
    expect(got).toEqual([11, 12, 13, 14, 15]);
    expect(events).toMatchObject([{ kind: 'subscribed', resumed: false, recovered: false }, { kind: 'subscribed', resumed: true, recovered: true, position: { offset: 11 } }]);
  });
  test('what an event lost has told of is not', async () => {
    const { server, got, events } = await subscribed();
    server.tell(start(1, 7, 10), lost(1, 2), message(7, 13, 12), lost(1, 1), message(7, 14, 13), message(7, 16, 15), message(7, 18, 17));
    expect(await server.asked()).toMatchObject({ from: { epoch, offset: 16 } });
    expect(got).toEqual([13, 14, 16]);
    expect(events.slice(1)).toEqual([{ kind: 'lost', count: 2 }, { kind: 'lost', count: 1 }]);
  });
  test('where offsets are not consecutive, one that was told of explains any number', async () => {
    const { server, got } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 15, 10, false), lost(1, 1), message(7, 30, 25, false), message(7, 40, 35, false));
    expect(await server.asked()).toMatchObject({ from: { epoch, offset: 30 } });
    expect(got).toEqual([15, 30]);
  });
  test('not with conflate, of another epoch, and when it is not known', async () => {
    const { server, got } = await subscribed({ policy: 'conflate' });
    server.tell(start(1, 7, 10), message(7, 13, 12));
    await server.quiet();
    expect(got).toEqual([13]);
    const other = await subscribed();
    other.server.tell(start(1, 7, 10), message(7, 20), message(7, 3, 2, true, epoch + 1));
    await other.server.quiet();
    expect(other.got).toEqual([20, 3]);
  });
});

describe('again and interrupted', () => {
  test('messages before the next start do not count', async () => {
    const { server, got, events } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 11), bytes(about(6, 7), 'away'), message(7, 13), about(7, 7), message(7, 14));
    expect(await server.asked()).toMatchObject({ from: { epoch, offset: 11 } });
    server.tell(start(1, 7, 11, true), message(7, 12), message(7, 13), message(7, 14));
    await server.quiet();
    expect(got).toEqual([11, 12, 13, 14]);
    expect(events[1]).toMatchObject({ kind: 'interrupted', error: { code: Code.Unavailable, message: 'away', remote: true } });
  });
  test('without positions they do', async () => {
    const { server, got } = await subscribed(), plain = bytes([1, 1], [0, 1], [7, 8], [0, 8], '1');
    server.tell(start(1, 7), plain, about(6, 7), plain, about(7, 7));
    expect(await server.asked()).not.toHaveProperty('from');
    server.tell(start(1, 7), plain);
    await server.quiet();
    expect(got).toEqual([1, 1, 1]);
  });
  test('a refusal that is not final is no end, on a connection that stands', async () => {
    const { server, got, end } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 11), about(7, 7));
    for (let i = 0; i < 2; i++) {
      const f = await server.conn.next();
      server.conn.send(Cmd.Response, Flag.Error, f.seq, 'ps.sub', 'not now');
    }
    expect(await server.asked()).toMatchObject({ from: { offset: 11 } });
    server.tell(start(1, 8, 11, true), message(8, 12), message(7, 13), bytes([8, 1], [0, 1], [1, 8], [Code.NotFound, 1], 'gone'));
    expect((await failure(end, Code.NotFound)).message).toBe('gone');
    expect(got).toEqual([11, 12]); // the number of before is not known any more
  });
  test('several agains while it is asked', async () => {
    const { server, got } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 11), about(7, 7));
    const f = await server.conn.next();
    server.tell(about(7, 7), about(7, 7));
    await server.quiet();
    server.conn.send(Cmd.Response, 0, f.seq, 'ps.sub', '{}');
    expect(await server.asked()).toMatchObject({ from: { offset: 11 } }); // once more for both
    server.tell(start(1, 7, 11, true), message(7, 12));
    await server.quiet();
    expect(got).toEqual([11, 12]);
  });
});

describe('connections', () => {
  test('the next one goes on', async () => {
    const { peer, server, got, request, events } = await subscribed({ last: 3, policy: 'drop_newest', queue: 9, presence: true, join: { a: 1 } });
    expect(request).toEqual({ topic: 't', token: 1, last: 3, overflow: 'drop_newest', queue: 9, presence: true, join: true, info: { a: 1 } });
    server.tell(start(1, 7, 10), message(7, 11));
    await server.quiet();
    server.conn.ws.terminate();
    const next = new Server(await peer.accept());
    const again = await next.conn.next(); // and this one is lost before it answers
    expect(JSON.parse(String(Buffer.from(again.rest)))).toEqual({ ...request, last: undefined, from: { epoch, offset: 11 } });
    next.conn.ws.terminate();
    const third = new Server(await peer.accept());
    await third.asked();
    third.tell(start(1, 3, 11, true), message(3, 12));
    await third.quiet();
    expect(got).toEqual([11, 12]);
    expect(events.filter((e) => e.kind === 'subscribed' && e.recovered)).toHaveLength(1);
  });
  test('one that was lost before the start begins as the first', async () => {
    const { peer, server, events } = await subscribed({ last: 3 });
    server.conn.ws.terminate();
    const next = new Server(await peer.accept());
    expect(await next.asked()).toEqual({ topic: 't', token: 1, last: 3 });
    next.tell(start(1, 7, 10));
    await next.quiet();
    expect(events).toMatchObject([{ resumed: false }]);
  });
  test('a start without recovery goes back to where the server is', async () => {
    const { server, got, peer } = await subscribed();
    server.tell(start(1, 7, 10), message(7, 11));
    await server.quiet();
    server.conn.ws.terminate();
    const next = new Server(await peer.accept());
    await next.asked();
    next.tell(start(1, 7, 3), message(7, 4, 3));
    await next.quiet();
    expect(got).toEqual([11, 4]);
  });
});

test('stray and malformed events', async () => {
  const { client, server, got } = await subscribed(), errors: Code[] = [];
  client.on('error', (e) => errors.push(e.code));
  const whole = message(7, 11);
  server.tell(start(9, 9, 1), start(1, 7, 10), message(8, 1), lost(5, 1), about(99, 7), about(4, 8).subarray(0, 3));
  for (let n = 0; n < 26; n++) server.tell(whole.subarray(0, n));
  server.tell(bytes([4, 1], [0, 1], [7, 8], [1, 2], 't', [1, 1], 'm', 'no JSON'), bytes([8, 1], [0, 1], [4, 8], [1, 1]), whole);
  await server.quiet();
  expect(got).toEqual([11]);
  expect(errors.length).toBeGreaterThan(20);
});

test('bytes of all kinds', () => {
  // A generator with a seed, so that a failure can be repeated.
  let seed = 1;
  const random = (n: number): number => (seed = Math.imul(seed, 48271) >>> 1) % n;
  const good = [
    start(1, 7, 10, true), start(1, 7), message(7, 11, 10), message(7, 11, 8), lost(1, 3), about(6, 7), about(7, 7),
    bytes([1, 1], [0x47, 1], [7, 8], [1, 8], [5, 8], [2, 8], [1, 8], [3, 2], 'a.b', [1, 1], 'k', 'hi'),
    bytes([4, 1], [0, 1], [7, 8], [1, 2], 't', [1, 1], 'm', '{}'), bytes([8, 1], [0, 1], [1, 8], [3, 1], 'why'),
  ];
  for (let i = 0; i < 20_000; i++) {
    const b = Uint8Array.from(good[i % good.length]!.subarray(0, random(3) ? undefined : random(60)));
    for (let n = random(4); n > 0 && b.length; n--) b[random(b.length)] = random(256);
    for (const parse of [parseEvent, parsePage, parseReceipt]) {
      try {
        const { message } = parse(b) as { message?: Raw };
        if (message && message.data.length > b.length) throw new Error(`more than there was: ${hex(b)}`);
      } catch (e) {
        if (!(e instanceof ArpcError || e instanceof SyntaxError)) throw e;
      }
    }
  }
});

test('leaving tells the server, also while it is asked', async () => {
  const { server, p, end } = await subscribed();
  server.tell(start(1, 7, 10));
  p.close();
  await end;
  expect(await server.asked('ps.unsub')).toEqual({ token: 1 });
  const second = new PubSub(p.client), sub = second.subscribe('u');
  const f = await server.conn.next();
  sub.unsubscribe();
  expect(await server.asked('ps.unsub')).toEqual({ token: 2 });
  server.conn.send(Cmd.Response, 0, f.seq, 'ps.sub', '{}');
  server.tell(start(2, 7, 10), message(7, 11));
  await server.quiet();
});

test('leaving without a connection tells nobody, not even later', async () => {
  const { server, p, end, peer } = await subscribed({}, { queue: 10 });
  const off = event(p.client, 'close');
  server.conn.ws.terminate();
  await off;
  p.close();
  await end;
  const next = new Server(await peer.accept());
  await next.quiet();
});

test('what cannot be asked for at all is not asked for again and again', async () => {
  const loop: { self?: unknown } = {};
  loop.self = loop;
  const { p, server } = await subscribed(), sub = p.subscribe('u', { join: loop }), stop = new AbortController();
  await failure(sub.ready, Code.InvalidArgument);
  const other = p.subscribe('v', { signal: stop.signal });
  expect(await server.asked()).toMatchObject({ topic: 'v' });
  await other.ready;
  stop.abort(null);
  expect((await failure(other[Symbol.asyncIterator]().next(), Code.Canceled)).message).toBe('null');
});

test('a connection that drains and the next one together bring each message once', async () => {
  const peer = await Peer.start(), client = connect(peer.url), p = new PubSub(client), got: number[] = [], starts: boolean[] = [];
  const old = new Server(await peer.accept()), open = event(client, 'open');
  await old.conn.greet({ features: Feature.GoAway });
  await open;
  const sub = p.subscribe<number>('t', { onEvent: (e) => e.kind === 'subscribed' && starts.push(e.recovered) });
  const loop = (async () => {
    for await (const m of sub) got.push(m.value);
  })();
  await old.asked();
  old.tell(start(1, 7, 10), message(7, 11, 10));
  const call = client.call('/slow'), slow = await old.conn.next(); // keeps the connection
  old.conn.send(Cmd.GoAway, 0, 0, '', Uint8Array.of(Code.Unavailable, 0, 0, 0, 0, 0));
  const next = new Server(await peer.accept());
  await next.conn.greet({ features: Feature.GoAway });
  expect(await next.asked()).toMatchObject({ from: { offset: 11 } });
  old.tell(message(7, 12, 11), message(7, 13, 12));
  await old.quiet();
  next.tell(start(1, 8, 11, true), message(8, 12), message(8, 13), message(8, 14));
  await next.quiet();
  old.tell(message(7, 14, 13), message(7, 15, 14)); // its number is not known any more
  await old.quiet();
  next.tell(message(8, 15, 14));
  await next.quiet();
  expect([got, starts]).toEqual([[11, 12, 13, 14, 15], [false, true]]);
  old.conn.send(Cmd.Response, 0, slow.seq, '/slow', '1');
  expect(await call).toBe(1);
  sub.unsubscribe();
  await loop;
});

test('an overflow of disconnect stops the server until the loop has taken what waits', async () => {
  const { server, got, events } = await subscribed({ policy: 'disconnect', queue: 2, onEvent: undefined as never });
  // One message of the WebSocket, so that the loop has no chance in between.
  const frames = [start(1, 7, 10), message(7, 11), message(7, 12), message(7, 13), lost(1, 1), message(7, 14), message(7, 15)];
  const sent = frames.map((f) => bytes([f.length + 8, 4], [0, 1], [Cmd.Notify, 1], [0, 1], [8, 1], [0, 8], 'ps.event', f));
  server.conn.raw(...sent);
  expect(await server.asked('ps.unsub')).toEqual({ token: 1 });
  expect(await server.asked()).toMatchObject({ from: { epoch, offset: 12 } });
  server.tell(message(7, 16), start(1, 7, 12, true), message(7, 13), message(7, 14));
  await server.quiet();
  expect(got).toEqual([11, 12, 13, 14]);
  expect(events).toEqual([]);
});

describe('the queue', () => {
  const raw = (n: number, key = ''): Raw => ({ topic: 't', data: new Uint8Array(1), key, timestamp: n, position: undefined, toOne: false });
  const all = (q: Queue): (string | number)[] => {
    const out: (string | number)[] = [];
    for (let w = q.take(); w; w = q.take()) out.push('kind' in w ? (w.kind === 'lost' ? `lost ${w.count}` : w.kind === 'subscribed' ? `${w.resumed} ${w.recovered}` : w.kind) : w.timestamp);
    return out;
  };
  const began = (resumed: boolean, recovered: boolean): Event & { kind: 'subscribed' } => ({ kind: 'subscribed', resumed, recovered, position: undefined });

  test('what is told stays before what follows it, and is told once', () => {
    const q = new Queue('drop_oldest', 2, 100);
    q.note(began(false, false));
    q.push(raw(1), 1, '');
    q.note(began(true, true));
    q.push(raw(2), 1, '');
    q.note({ kind: 'lost', count: 5 });
    q.push(raw(3), 1, ''); // 1 is dropped
    expect(all(q)).toEqual(['lost 1', 'true true', 2, 'lost 5', 3]);

    for (const [events, want] of [
      [[began(false, false), began(true, false)], 'true false'], [[began(true, true), began(true, true)], 'true true'],
      [[began(true, false), began(true, true)], 'true false'], [[began(false, false), began(true, true)], 'true true'],
    ] as [(Event & { kind: 'subscribed' })[], string][]) {
      for (const e of events) q.note(e);
      expect(all(q)).toEqual([want]);
    }
  });
  test('however often it begins while nobody takes anything, it does not grow', () => {
    for (const policy of ['drop_oldest', 'conflate', 'drop_newest'] as const) {
      const q = new Queue(policy, 3, 100);
      let missed = false;
      for (let i = 0; i < 1000; i++) {
        q.note(began(i > 0, i > 0 && i !== 500));
        q.push(raw(i, String(i % 2)), 1, String(i % 2));
        q.push(raw(i), 1, '');
      }
      const out = all(q);
      expect(out.length).toBeLessThan(12);
      missed = out.includes('true false') || out.includes('false false');
      expect(missed).toBe(true);
      expect(out.filter((o) => typeof o === 'number').length + q.dropped + q.conflated).toBe(2000);
      expect(out.reduce<number>((n, o) => n + (String(o).startsWith('lost') ? Number(String(o).slice(5)) : 0), 0)).toBe(q.dropped);
      expect([q.size, all(q)]).toEqual([0, []]);
    }
  });
  test('conflate keeps the order of positions', () => {
    const q = new Queue('conflate', 10, 100);
    q.note(began(false, false));
    for (const [n, key] of [[1, 'a'], [2, 'b'], [3, ''], [4, 'a'], [5, 'c'], [6, 'b']] as [number, string][]) q.push(raw(n, key), 1, key);
    expect(all(q)).toEqual(['false false', 3, 4, 5, 6]);
    expect([q.dropped, q.conflated]).toEqual([0, 2]);
  });
});

test('the examples of the document', () => {
  const doc = readFileSync(new URL('../../../docs/pubsub.md', import.meta.url), 'utf8');
  const examples = Object.fromEntries([...doc.matchAll(/^([a-z-]+) +([0-9a-f]{16,})$/gm)].map(([, name, b]) => [name!, unhex(b!)]));
  const position = { epoch: 0x1122334455667, offset: 258 }, timestamp = 0x1122334455667788 / 1e6, data = utf8('hi');
  const events: Record<string, unknown> = {
    'message': { kind: 1, id: 7, message: { topic: '', key: '', timestamp, position: undefined, toOne: false, data } },
    'message-all-fields': { before: 256, follows: false, message: { topic: 'a.b', key: 'k', timestamp, position, toOne: false, data } },
    'message-follows': { before: 257, follows: true, message: { topic: '', position, data } },
    'start-recovered': { kind: 2, id: 7, token: 1, recovered: true, position },
    'lost': { kind: 3, id: 1, count: 3 },
    'joined': { kind: 4, id: 7, member: { id: 'm1', info: {} } },
    'interrupted': { kind: 6, id: 7, words: 'why' },
    'again': { kind: 7, id: 7 },
    'ended': { kind: 8, id: 1, code: Code.Unauthenticated, words: 'invalid password' },
  };
  expect(Object.keys(examples).sort()).toEqual([...Object.keys(events), 'publication', 'receipt'].sort());
  for (const [name, want] of Object.entries(events)) expect(parseEvent(examples[name]!.subarray(16 + 8)), name).toMatchObject(want as object);
  expect(hex(encodePublication('a.b', data, { key: 'k', id: 'i' }))).toBe(hex(examples.publication!));
  expect(parseReceipt(examples.receipt!)).toEqual({ position, duplicate: true });
  const m = examples['message-all-fields']!.subarray(24);
  expect(parsePage(bytes([1, 8], [2, 8], [1, 1], [m.length, 4], m))).toMatchObject({ top: { epoch: 1, offset: 2 }, complete: true, messages: [{ topic: 'a.b' }] });
  expect(() => parsePage(bytes([1, 8], [2, 8], [1, 1], [m.length + 1, 4], m))).toThrow('malformed');
});

test('the client says what it cannot do', async () => {
  const { client, end } = await subscribed();
  const closed = event(client, 'state', (s) => s === 'closed');
  client.close('enough');
  await closed;
  await failure(end, Code.Unavailable);
});

// Against the real Go server.

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ArpcError, bytes, type Client, Code, json, type Context } from '@arpc-go/arpc';
import { connect, event, failure, later, opened, startServer, type Server } from './helper.js';

let server: Server;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server.kill());

const MiB = 1 << 20;

describe('values', () => {
  const values: [string, unknown][] = [
    ['0', 0], ['a negative fraction', -1.5], ['false', false], ['true', true], ['null', null], ['an empty text', ''], ['a text', 'hello'],
    ['emoji', '👩‍👩‍👧‍👦 🦊 日本語'], ['a byte order mark', '\ufeffx'], ['an empty array', []], ['an empty object', {}],
    ['nested', { a: [1, { b: null }], 'ключ': '"\\\u0000' }],
  ];
  test.each(values)('%s comes back from a raw echo', async (_, v) => {
    expect(await connect(server.url).call('/echo', v)).toEqual(v);
  });
  test.each(values)('%s comes back through JSON', async (_, v) => {
    expect(await connect(server.url).call('/json', v, { as: 'json' })).toEqual(v);
  });
  test('texts that look like JSON, as text and as JSON', async () => {
    const c = connect(server.url);
    for (const s of ['12', 'null', '"x"', '{}', '', ' ', 'é']) {
      expect(await c.call('/text', s, { as: 'text' })).toBe(s);
      expect(await c.call('/json', s, { as: 'json' })).toBe(s);
    }
    expect(await c.call('/text', '12')).toBe(12); // what the rules without as say
  });
  test('bytes', async () => {
    const c = connect(server.url);
    const all = Uint8Array.from({ length: 256 }, (_, i) => i);
    expect(await c.call('/echo', all, { as: 'bytes' })).toEqual(all);
    expect(await c.call('/echo', all.buffer, { as: 'bytes' })).toEqual(all);
    expect(await c.call('/echo', all.subarray(3, 7), { as: 'bytes' })).toEqual(all.slice(3, 7));
    expect(await c.call('/echo', new DataView(all.buffer, 250), { as: 'bytes' })).toEqual(all.slice(250));
    expect(await c.call('/echo', new Uint8Array(0), { as: 'bytes' })).toEqual(new Uint8Array(0));
    const raw = connect(server.url, { codec: bytes });
    expect(await raw.call('/echo', all)).toEqual(all);
    expect((await failure(raw.call('/echo', {}), Code.InvalidArgument)).message).toContain('cannot encode');
  });
  test('bodies of 1 MiB', async () => {
    const c = connect(server.url);
    const text = '🦊x'.repeat(MiB / 5), bin = Uint8Array.from({ length: MiB }, (_, i) => i * 31 >> 3);
    const [a, b, d] = await Promise.all([
      c.call('/text', text), c.call('/echo', bin, { as: 'bytes' }), c.call('/json', { text }, { as: 'json' }),
    ]);
    expect(a === text).toBe(true);
    expect(Buffer.compare(b, bin)).toBe(0);
    expect((d as { text: string }).text === text).toBe(true);
  });
  test('nothing is an empty payload', async () => {
    const c = connect(server.url);
    expect(await c.call('/echo', undefined, { as: 'bytes' })).toEqual(new Uint8Array(0));
    expect(await c.call('/nil')).toBe('');
    expect(await c.call('/nil', undefined, { as: 'json' })).toBe(null);
  });
  test('a codec of one\'s own', async () => {
    const reversed = {
      name: 'reversed',
      encode: (v: unknown) => json.encode(v).reverse(),
      decode: (b: Uint8Array) => json.decode(b.slice().reverse()),
    };
    const c = connect(server.url, { codec: reversed });
    expect(await c.call('/echo', { a: 'é' })).toEqual({ a: 'é' });
    expect(await c.call('/echo', [1, 2], { as: 'text' })).toBe(']2,1[');
    expect(await connect(server.url).call('/echo', 'abc', { as: reversed })).toBe('abc');
  });
  test('what cannot be encoded or decoded', async () => {
    const c = connect(server.url), loop: { self?: unknown } = {};
    loop.self = loop;
    await failure(c.call('/echo', loop), Code.InvalidArgument);
    const e = await failure(c.call('/echo', 'no JSON', { as: { ...json, encode: (v) => Buffer.from(String(v)) } }));
    expect(e.message).toBeTruthy();
    expect((await failure(c.call('/text', '{', { as: { name: 'x', encode: bytes.encode, decode: () => { throw new Error('no'); } } }), Code.Internal)).message)
      .toBe('malformed answer: no');
  });
});

describe('calls', () => {
  test('1,000 at a time, twice, with numbers beyond 256', async () => {
    const c = connect(server.url);
    for (let round = 0; round < 2; round++) {
      const all = await Promise.all(Array.from({ length: 1000 }, (_, i) => c.call('/echo', { i })));
      expect(all).toEqual(Array.from({ length: 1000 }, (_, i) => ({ i })));
    }
  });
  test('routes beyond ASCII', async () => {
    expect(await connect(server.url).call('/echo/日本語/🦊', '🦊')).toBe('🦊');
  });
  test('routes that are too long or empty', async () => {
    const c = connect(server.url);
    for (const route of ['', 'x'.repeat(128), '🦊'.repeat(32)]) {
      await failure(c.call(route), Code.InvalidArgument);
      await failure(() => c.notify(route), Code.InvalidArgument);
      await failure(c.stream(route), Code.InvalidArgument);
      await failure(() => c.handle(route, () => 1), Code.InvalidArgument);
    }
    await failure(c.call('x'.repeat(127)), Code.Unimplemented);
  });
  test('errors with code, message and details', async () => {
    const e = await failure(connect(server.url).call('/error'), Code.NotFound);
    expect(e).toBeInstanceOf(Error);
    expect(e.name).toBe('ArpcError');
    expect(e.message).toBe('nö 🦊');
    expect(e.remote).toBe(true);
    expect(e.details.map((d) => [d.name, d.value])).toEqual([['object', { id: 7 }], ['text', 'why'], ['bytes', expect.anything()]]);
    expect(e.details[2]!.bytes).toEqual(Uint8Array.of(0, 255));
  });
  test('every code', async () => {
    const c = connect(server.url);
    for (let code = 1; code <= 16; code++) {
      const e = await failure(c.call('/code', code), code);
      expect(e.message.replaceAll('_', '')).toBe(Code[code]!.toLowerCase());
    }
  });
  test('unknown routes, panics and texts', async () => {
    const c = connect(server.url);
    expect((await failure(c.call('/no such route'), Code.Unimplemented)).message).toBe('method not found');
    await failure(c.call('/panic'), Code.Internal);
    expect((await failure(c.call('/error/text'), Code.Unknown)).message).toBe('bad');
  });
  test('the deadline travels', async () => {
    const c = connect(server.url);
    expect(await c.call('/left', null, { timeout: Infinity })).toBe('none');
    const left = await c.call<number>('/left', null, { timeout: 100_000 });
    expect(left).toBeGreaterThan(50_000);
    expect(left).toBeLessThanOrEqual(100_000);
    expect(await c.call<number>('/left')).toBeLessThanOrEqual(60_000);
    expect(await connect(server.url, { timeout: 5000 }).call<number>('/left')).toBeLessThanOrEqual(5000);
  });
  test('the deadline ends the call here and the handler there', async () => {
    const c = connect(server.url);
    await failure(c.call('/wait', null, { timeout: 50 }), Code.DeadlineExceeded); // of whoever is first to notice
    expect(await c.call('/cause')).toBe('context deadline exceeded');
  });
  test('an AbortSignal cancels the handler', async () => {
    const c = connect(server.url), waiting = later(), control = new AbortController();
    c.handle('/waiting', () => waiting.resolve());
    const call = c.call('/wait', null, { signal: control.signal });
    await waiting.promise;
    control.abort(new Error('changed my mind 🦊'));
    const e = await failure(call, Code.Canceled);
    expect(e.message).toBe('changed my mind 🦊');
    expect(e.remote).toBe(false);
    expect((e.cause as Error).message).toBe('changed my mind 🦊');
    expect(await c.call('/cause')).toBe('cancelled by the caller: changed my mind 🦊');
  });
  test('a signal that is aborted already, and one with a time', async () => {
    const c = await opened(connect(server.url));
    await failure(c.call('/echo', 1, { signal: AbortSignal.abort() }), Code.Canceled);
    await failure(c.stream('/s/echo', { signal: AbortSignal.abort() }), Code.Canceled);
    await failure(c.call('/wait', 1, { signal: AbortSignal.timeout(20) }), Code.DeadlineExceeded);
    expect(await c.call('/cause')).toMatch(/cancelled|deadline/);
  });
  test('metadata in both directions', async () => {
    const c = connect(server.url, { metadata: { app: 'test', over: 'this' } });
    let back: unknown;
    const got = await c.call('/metadata', null, {
      metadata: { 'ключ': 'значение', over: 'that', bytes: Uint8Array.of(255, 0), empty: '' },
      onMetadata: (md) => {
        back = md;
      },
    });
    expect(got).toMatchObject({ app: 'test', over: 'that', 'ключ': 'значение', empty: '' });
    expect(back).toEqual({
      're-app': 'test', 're-over': 'that', 're-ключ': 'значение', 're-bytes': Uint8Array.of(255, 0), 're-empty': '',
    });
  });
  test('metadata that cannot be sent', async () => {
    const c = await opened(connect(server.url));
    await failure(c.call('/echo', 1, { metadata: { '': 'x' } }), Code.InvalidArgument);
    await failure(c.call('/echo', 1, { metadata: { ['k'.repeat(256)]: 'x' } }), Code.InvalidArgument);
    await failure(c.call('/echo', 1, { metadata: { k: 'x'.repeat(65536) } }), Code.InvalidArgument);
    await failure(c.call('/echo', 1, { metadata: { k: 'x'.repeat(20_000) } }), Code.InvalidArgument); // the server takes 16 KiB
    await failure(() => c.notify('/note', 1, { metadata: { k: 'x'.repeat(20_000) } }), Code.InvalidArgument);
    await failure(c.stream('/s/echo', { metadata: { k: 'x'.repeat(20_000) } }), Code.InvalidArgument);
    expect(await c.call('/echo', 'still here')).toBe('still here');
  });
  test('a message that is longer than the server accepts', async () => {
    const small = await startServer('-body', '8192');
    const c = connect(small.url);
    expect(await c.call('/echo', 'x'.repeat(8000))).toHaveLength(8000);
    await failure(c.call('/echo', 'x'.repeat(9000)), Code.InvalidArgument);
    await failure(() => c.notify('/note', 'x'.repeat(9000)), Code.InvalidArgument);
    c.handle('/long', () => 'x'.repeat(9000));
    expect(await c.call('/callme', { Route: '/long' })).toMatchObject({ Code: Code.Internal });
    await small.kill();
  });
  test('notifications arrive in order', async () => {
    const c = connect(server.url);
    for (let i = 0; i < 500; i++) expect(c.notify('/note', i)).toBe(true);
    for (let i = 0; i < 500; i++) expect(await c.call('/noted')).toBe(i);
  });
});

describe('calls of the server', () => {
  interface Outcome { Value: string; Code: number; Message: string; Remote: boolean; Details: Record<string, string>; Metadata: Record<string, string> | null }
  const callme = (c: Client, order: object): Promise<Outcome> => c.call<Outcome>('/callme', order);

  test('the page answers', async () => {
    const c = connect(server.url);
    c.handle<{ a: number }, { sum: number }>('/add/🦊', async (v) => ({ sum: v.a + 1 }));
    expect(await callme(c, { Route: '/add/🦊', Value: { a: 41 } })).toMatchObject({ Value: '{"sum":42}', Code: 0 });
  });
  test.each([[0, '0'], [false, 'false'], ['', ''], [null, 'null'], [undefined, ''], ['text', 'text'], [Uint8Array.of(65), 'A']])(
    'an answer of %j', async (v, want) => {
      const c = connect(server.url);
      c.handle('/v', () => v);
      expect((await callme(c, { Route: '/v' })).Value).toBe(want);
    });
  test('the handler sees metadata, deadline and body, and answers with metadata', async () => {
    const c = connect(server.url);
    let seen: Context | undefined;
    c.handle('/seen', (_, ctx) => {
      seen = ctx;
      ctx.setMetadata('from', 'page');
      return 'ok';
    });
    const out = await callme(c, { Route: '/seen', Value: [1], Metadata: { trace: '7' }, Timeout: 30_000 });
    expect(out.Metadata).toEqual({ from: 'page' });
    expect(seen!.metadata).toEqual({ trace: '7' });
    expect(seen!.route).toBe('/seen');
    expect(seen!.isNotify).toBe(false);
    expect(seen!.client).toBe(c);
    expect(new TextDecoder().decode(seen!.body)).toBe('[1]');
    expect(Math.abs(seen!.deadline! - Date.now() - 30_000)).toBeLessThan(15_000);
    expect(seen!.signal.aborted).toBe(false);
  });
  test('metadata goes with an error, both ways', async () => {
    const c = connect(server.url);
    c.handle('/fails', (_, ctx) => {
      ctx.setMetadata('why', 'so');
      throw new ArpcError(Code.Aborted, 'no');
    });
    expect(await callme(c, { Route: '/fails' })).toMatchObject({ Code: Code.Aborted, Metadata: { why: 'so' } });
    let md: unknown;
    await failure(c.call('/error/metadata', null, { onMetadata: (m) => (md = m) }), Code.Aborted);
    expect(md).toEqual({ why: 'so' });
  });
  test('errors go to the server', async () => {
    const c = connect(server.url);
    c.handle('/coded', () => {
      throw new ArpcError(Code.AlreadyExists, 'twice', { details: [{ name: 'n', value: { x: 1 } }, { name: 's', value: 'raw' }] });
    });
    c.handle('/thrown', async () => {
      throw new TypeError('plain');
    });
    c.handle('/odd', () => Promise.reject('a text'));
    expect(await callme(c, { Route: '/coded' })).toMatchObject({ Code: Code.AlreadyExists, Message: 'twice', Remote: true, Details: { n: '{"x":1}', s: 'raw' } });
    expect(await callme(c, { Route: '/thrown' })).toMatchObject({ Code: Code.Unknown, Message: 'plain' });
    expect(await callme(c, { Route: '/odd' })).toMatchObject({ Code: Code.Unknown, Message: 'a text' });
    expect(await callme(c, { Route: '/unknown' })).toMatchObject({ Code: Code.Unimplemented, Message: 'method not found' });
  });
  test('a request that cannot be decoded', async () => {
    const c = connect(server.url);
    c.handle('/strict', (v) => v, { as: 'json' });
    expect(await callme(c, { Route: '/strict', Value: { ok: 1 } })).toMatchObject({ Value: '{"ok":1}' });
    expect(await callme(c, { Route: '/strict' })).toMatchObject({ Value: 'null' });
    c.handle('/never', (v) => v, { as: { name: 'x', encode: bytes.encode, decode: () => { throw new Error('no'); } } });
    expect(await callme(c, { Route: '/never' })).toMatchObject({ Code: Code.InvalidArgument, Message: 'malformed request: no' });
  });
  test('the signal aborts when the server cancels', async () => {
    const c = connect(server.url), reason = later<unknown>();
    c.handle('/long', (_, ctx) => new Promise((_, reject) => {
      c.notify('/running');
      ctx.signal.addEventListener('abort', () => {
        reason.resolve(ctx.signal.reason);
        reject(ctx.signal.reason as Error);
      });
    }));
    expect(await callme(c, { Route: '/long', Cancel: true })).toMatchObject({ Code: Code.Canceled, Remote: false });
    const e = (await reason.promise) as ArpcError;
    expect(e).toBeInstanceOf(ArpcError);
    expect([e.code, e.message, e.remote]).toEqual([Code.Canceled, 'cancelled by the caller: the server has changed its mind', true]);
  });
  test('the signal aborts at the deadline and when the connection ends', async () => {
    const own = await startServer(), c = connect(own.url), reasons: ArpcError[] = [], one = later(), both = later();
    c.handle('/long', (_, ctx) => new Promise(() => {
      ctx.signal.addEventListener('abort', () => {
        (reasons.push(ctx.signal.reason as ArpcError) === 1 ? one : both).resolve();
      });
      if (ctx.deadline! > Date.now() + 1000) void own.kill();
    }));
    expect(await callme(c, { Route: '/long', Timeout: 50 })).toMatchObject({ Code: Code.DeadlineExceeded });
    await one.promise;
    await failure(callme(c, { Route: '/long', Timeout: 60_000 }), Code.Unavailable);
    await both.promise;
    expect(reasons.map((r) => r.code)).toEqual([Code.DeadlineExceeded, Code.Unavailable]);
  });
  test('notifications, in order, and a broadcast', async () => {
    const c = connect(server.url), got: unknown[] = [], all = later<unknown>(), done = later();
    c.handle('/tick', (v, ctx) => {
      expect(ctx.isNotify).toBe(true);
      if (got.push(v) === 300) done.resolve();
    });
    c.handle('/all', (v) => all.resolve(v));
    await c.call('/notifyme', { Route: '/tick', Count: 300 });
    await done.promise;
    expect(got).toEqual(Array.from({ length: 300 }, (_, i) => i));
    await c.call('/broadcast', 'to all');
    expect(await all.promise).toBe('to all');
  });
  test('a notification handler that throws is an error event', async () => {
    const c = connect(server.url), error = event(c, 'error');
    c.handle('/bad', () => {
      throw new Error('in the handler');
    });
    await c.call('/notifyme', { Route: '/bad', Count: 1 });
    expect((await error)[0].message).toBe('in the handler');
    expect(c.state).toBe('open');
  });
  test('a handler is registered once, and can be removed', async () => {
    const c = connect(server.url), remove = c.handle('/h', () => 1);
    expect(() => c.handle('/h', () => 2)).toThrow(ArpcError);
    remove();
    c.handle('/h', () => 2);
    remove(); // not the other one
    expect((await callme(c, { Route: '/h' })).Value).toBe('2');
  });
});

describe('streams', () => {
  test('echo, with empty messages and large ones', async () => {
    const s = await connect(server.url).stream<Uint8Array, Uint8Array>('/s/echo', { as: 'bytes' });
    const sizes = [1, 0, 65536, 65537, 3 * MiB, 0, 5];
    const sent = sizes.map((n) => new Uint8Array(n).fill(n % 251));
    const sending = (async () => {
      for (const m of sent) await s.send(m);
      await s.closeSend();
    })();
    const got: Uint8Array[] = [];
    for await (const m of s) got.push(m);
    await sending;
    expect(got.map((m) => m.length)).toEqual(sizes);
    got.forEach((m, i) => expect(Buffer.compare(m, sent[i]!)).toBe(0));
    expect(s.signal.aborted).toBe(true);
    await failure(s.send(sent[0]!), Code.FailedPrecondition);
    expect(await s.next()).toEqual({ done: true, value: undefined });
  });
  test('from the server, with a slow reader here: the server waits', async () => {
    const c = connect(server.url, { limits: { streamWindow: 16384, streamWindows: 32768 } });
    const s = await c.stream<string, object>('/s/source', { as: 'text' });
    await s.send(new TextEncoder().encode('{"Count":300,"Size":1000}') as never);
    const first = await s.next();
    expect(String(first.value)).toMatch(/^0 /);
    for (let i = 0; i < 20; i++) await c.call('/echo', i); // the connection goes on
    let n = 1;
    for await (const m of s) {
      expect(m.startsWith(`${n++} `)).toBe(true);
      if (n % 50 === 0) await c.call('/echo', n);
    }
    expect(n).toBe(300);
  });
  test('to the server, with a slow reader there: send waits for credit', async () => {
    const own = await startServer('-window', '8192'), c = connect(own.url);
    const s = await c.stream<string, Uint8Array>('/s/slow');
    const message = new Uint8Array(2000);
    expect([1, 2, 3, 4].map(() => s.trySend(message))).toEqual([true, true, true, true]);
    expect(s.trySend(message)).toBe(false); // 8,192 bytes are what may be sent
    let sent = 0;
    const sending = (async () => {
      for (; sent < 50; sent++) await s.send(message);
      await s.closeSend();
    })();
    for (let i = 0; i < 10; i++) await c.call('/echo', i);
    expect(sent).toBeLessThan(5);
    await c.call('/s/take', 1000);
    await sending;
    expect(await s.next()).toEqual({ done: false, value: '54 messages, 108000 bytes' });
    await own.kill();
  });
  test('the server opens one', async () => {
    const c = connect(server.url);
    c.handleStream<string, string>('/page/🦊', async (s, ctx) => {
      expect(ctx.metadata).toEqual({ from: 'go' });
      expect(s.route).toBe('/page/🦊');
      for await (const m of s) await s.send(`got ${m.length}`);
      await s.send('end');
    }, { as: 'text' });
    const got = await c.call('/s/open', { Route: '/page/🦊', Count: 20, Size: 100_000 });
    expect(got).toEqual([...Array.from({ length: 20 }, () => 'got 100000'), 'end']);
  });
  test('the server opens one: no handler, a handler that throws, one that returns early', async () => {
    const c = connect(server.url);
    c.handleStream('/throws', () => {
      throw new ArpcError(Code.OutOfRange, 'no more');
    });
    c.handleStream('/leaves', async (s) => {
      await s.next();
    });
    c.handleStream('/throws/within', async (s) => {
      for await (const m of s) throw new ArpcError(Code.InvalidArgument, `bad: ${String(m).length}`);
    });
    c.handleStream('/leaves/loop', async (s) => {
      for await (const m of s) {
        if (String(m).startsWith('3')) break;
      }
      await s.send('enough');
    });
    expect((await failure(c.call('/s/open', { Route: '/throws/within', Count: 1, Size: 9 }), Code.InvalidArgument)).message).toBe('bad: 9');
    expect(await c.call('/s/open', { Route: '/leaves/loop', Count: 10, Size: 9 })).toEqual(['enough']);
    expect((await failure(c.call('/s/open', { Route: '/none', Count: 1 }), Code.Unimplemented)).message).toBe('there is no such stream handler');
    expect((await failure(c.call('/s/open', { Route: '/throws', Count: 1 }), Code.OutOfRange)).message).toBe('no more');
    expect(await c.call('/s/open', { Route: '/leaves', Count: 1000, Size: 10_000 })).toEqual([]);
  });
  test('errors of the server', async () => {
    const c = connect(server.url);
    const s = await c.stream('/s/fail');
    expect((await s.next()).value).toBe('one');
    const e = await failure(s.next(), Code.DataLoss);
    expect([e.message, e.remote]).toEqual(['lost it', true]);
    await failure(s.send('x'), Code.DataLoss);
    const none = await c.stream('/no such stream');
    await failure(none.next(), Code.Unimplemented);
  });
  test('metadata and deadline', async () => {
    const c = connect(server.url);
    const s = await c.stream('/s/metadata', { metadata: { k: 'v' }, timeout: 30_000 });
    expect((await s.next()).value).toEqual({ metadata: { k: 'v' }, deadline: true });
    expect(s.metadata).toEqual({ answer: 'yes' });
    await failure(() => s.setMetadata('a', 'b'), Code.FailedPrecondition);
    const t = await c.stream('/s/metadata');
    expect((await t.next()).value).toMatchObject({ deadline: false });
  });
  test('reset, signal, timeout, and leaving the loop', async () => {
    const c = connect(server.url);
    const begin = async (o: { signal?: AbortSignal; timeout?: number } = {}) => {
      const s = await c.stream<string, string>('/s/until', o);
      expect((await s.next()).value).toBe('ready');
      return s;
    };
    const s = await begin();
    s.reset(new ArpcError(Code.Aborted, 'enough'));
    expect(await c.call('/s/ended')).toBe('enough');
    await failure(s.next(), Code.Aborted);

    const control = new AbortController(), t = await begin({ signal: control.signal }), next = failure(t.next(), Code.Canceled);
    control.abort(new Error('gone'));
    expect((await next).message).toBe('gone');
    expect(await c.call('/s/ended')).toBe('gone');

    const u = await begin({ timeout: 100 });
    await failure(u.next(), Code.DeadlineExceeded);
    expect(await c.call('/s/ended')).toMatch(/timeout|deadline/);

    const v = await c.stream('/s/until');
    for await (const m of v) {
      expect(m).toBe('ready');
      break;
    }
    expect(v.signal.aborted).toBe(true);
    expect(await c.call('/s/ended')).toBe('the stream is over');
  });
  test('many at a time share the connection', async () => {
    const c = connect(server.url, { limits: { streamWindow: 8192, streamWindows: 16384 } });
    const sums = await Promise.all(Array.from({ length: 30 }, async (_, i) => {
      const s = await c.stream<Uint8Array, Uint8Array>('/s/echo', { as: 'bytes' });
      void (async () => {
        for (let k = 0; k < 20; k++) await s.send(new Uint8Array(1000 + i));
        await s.closeSend();
      })();
      let sum = 0;
      for await (const m of s) sum += m.length;
      return sum;
    }));
    expect(sums).toEqual(Array.from({ length: 30 }, (_, i) => 20 * (1000 + i)));
  });
  test('two receivers get a message each', async () => {
    const s = await connect(server.url).stream('/s/echo');
    const both = Promise.all([s.next(), s.next()]);
    await s.send('a');
    await s.send('b');
    expect((await both).map((r) => r.value)).toEqual(['a', 'b']);
  });
});

describe('connections', () => {
  test('the server is killed and started again', async () => {
    const first = await startServer(), states: string[] = [], order: string[] = [];
    const c = connect(first.url, {
      queue: 10,
      onConnect: async (c) => {
        order.push('hook');
        expect(await c.call('/echo', 'subscribe')).toBe('subscribe');
        order.push('hook done');
      },
    });
    c.on('state', (s) => states.push(s));
    await opened(c);
    const stream = await c.stream('/s/echo');
    await stream.send('x');
    await stream.next();
    const waiting = later(), closing = event(c, 'close'), again = event(c, 'reconnect');
    c.handle('/waiting', () => waiting.resolve());
    const inFlight = failure(c.call('/wait'), Code.Unavailable), reading = failure(stream.next(), Code.Unavailable);
    await waiting.promise;
    await first.kill();
    expect((await inFlight).message).toMatch(/^connection lost: /);
    await reading;
    expect((await closing)[0]).toBeInstanceOf(ArpcError);
    expect(c.state).toBe('reconnecting');
    const [{ attempt, delay }] = await again;
    expect(attempt).toBeGreaterThan(0);
    expect(delay).toBeGreaterThan(0);

    order.length = 0;
    const queued = c.call('/echo', 'queued').then((v) => {
      order.push('queued');
      return v;
    });
    await event(c, 'error'); // an attempt that fails
    const second = await startServer('-addr', first.addr);
    expect(await queued).toBe('queued');
    expect(order).toEqual(['hook', 'hook done', 'queued']);
    expect(await c.call('/echo', 'after')).toBe('after');
    expect(states.slice(0, 1).concat(states.slice(-2))).toEqual(['open', 'reconnecting', 'open']);
    await second.kill();
  });
  test('without a queue what is asked for while there is no connection fails', async () => {
    const own = await startServer(), c = await opened(connect(own.url));
    await own.kill();
    if (c.state === 'open') await event(c, 'close');
    await failure(c.call('/echo'), Code.Unavailable);
    await failure(c.stream('/s/echo'), Code.Unavailable);
    expect(c.notify('/note')).toBe(false);
  });
  test('the queue is bounded, and a waiting call has its timeout and signal', async () => {
    const own = await startServer(), c = await opened(connect(own.url, { queue: 2 }));
    await own.kill();
    if (c.state === 'open') await event(c, 'close');
    const control = new AbortController();
    const a = failure(c.call('/echo', 1, { timeout: 50 }), Code.DeadlineExceeded);
    const b = failure(c.call('/echo', 2, { signal: control.signal }), Code.Canceled);
    await failure(c.call('/echo', 3), Code.ResourceExhausted);
    control.abort();
    await Promise.all([a, b]);
    const d = failure(c.call('/echo', 4), Code.Unavailable);
    c.close();
    await d;
  });
  test('close ends everything', async () => {
    const c = await opened(connect(server.url)), closedState = event(c, 'state', (s) => s === 'closed');
    const call = failure(c.call('/wait'), Code.Unavailable);
    const s = await c.stream('/s/echo'), next = failure(s.next(), Code.Unavailable);
    c.close('that is it');
    expect((await call).message).toBe('connection lost: that is it');
    await Promise.all([next, closedState]);
    expect(c.state).toBe('closed');
    await failure(c.call('/echo'), Code.Unavailable);
    await failure(s.send('x'), Code.Unavailable);
    c.close();
  });
  test('without reconnect the client is closed with its connection', async () => {
    const own = await startServer(), c = await opened(connect(own.url, { reconnect: false }));
    const closedState = event(c, 'state');
    await own.kill();
    expect((await closedState)[0]).toBe('closed');
    const d = connect(own.url, { reconnect: false }), error = event(d, 'error');
    await failure(d.call('/echo'), Code.Unavailable);
    expect((await error)[0].message).toMatch(/ECONNREFUSED/);
    expect(d.state).toBe('closed');
  });
  test('the server closes the connection: its reason, and a new one', async () => {
    const c = await opened(connect(server.url)), closing = event(c, 'close'), again = event(c, 'open');
    await failure(c.call('/kick'), Code.Unavailable);
    expect((await closing)[0].message).toBeTruthy();
    await again;
    expect(await c.call('/echo', 1)).toBe(1);
  });
  test('GOAWAY: calls in flight are answered, new ones go to the next connection', async () => {
    const first = await startServer(), c = await opened(connect(first.url)), held = later(), release = later<string>();
    let opens = 0;
    c.on('open', () => opens++);
    c.handle('/hold', () => {
      held.resolve();
      return release.promise;
    });
    const inFlight = c.call('/callme', { Route: '/hold' }), stream = await c.stream('/s/echo');
    await stream.send('a');
    await held.promise;
    const closing = event(c, 'close'), again = event(c, 'open');
    await c.call('/drain');
    expect((await closing)[0].remote).toBe(true);
    expect(c.state).toBe('reconnecting');
    const early = c.call('/echo', 'early'); // waits for the next connection, without a queue
    early.catch(() => {}); // unless an attempt comes before the new server does
    const second = await startServer('-addr', first.addr);
    await again;
    expect(await c.call('/echo', 'new')).toBe('new');
    expect((await stream.next()).value).toBe('a'); // on the old one
    await stream.send('b');
    expect((await stream.next()).value).toBe('b');
    release.resolve('released');
    expect(await inFlight).toMatchObject({ Value: 'released', Code: 0 });
    await stream.closeSend();
    expect((await stream.next()).done).toBe(true);
    await first.exited; // it waited for what was in flight, and nothing else keeps the connection
    expect(c.state).toBe('open');
    expect(opens).toBe(1);
    await second.kill();
  });
});

test('the WebSocket of Node', async () => {
  const program = `
    const { Client } = await import(${JSON.stringify(new URL('../dist/arpc.mjs', import.meta.url).href)});
    const c = new Client(${JSON.stringify(server.url)});
    c.handle('/r', (v) => v + 1);
    console.log(await c.call('/text', 'é'), (await c.call('/callme', { Route: '/r', Value: 1 })).Value);
    c.close();
  `;
  const { stdout } = await promisify(execFile)(process.execPath, ['--experimental-websocket', '--input-type=module', '-e', program]);
  expect(stdout.trim()).toBe('é 2'); // and nothing keeps the program from ending
});

describe('tokens', () => {
  let own: Server;
  beforeAll(async () => {
    own = await startServer('-auth');
  });
  afterAll(() => own.kill());

  test('are sent before anything else, for each connection', async () => {
    let n = 0;
    const c = connect(own.url, { token: async () => `good ${++n}` });
    expect(await c.call('/whoami')).toBe('good 1');
    const again = event(c, 'open');
    await failure(c.call('/kick'), Code.Unavailable);
    await again;
    expect(await c.call('/whoami')).toBe('good 2');
  });
  test('may be bytes', async () => {
    const c = connect(own.url, { token: () => new TextEncoder().encode('good bytes') });
    expect(await c.call('/whoami')).toBe('good bytes');
  });
  test('are refreshed on a live connection', async () => {
    let n = 0, refreshed = later();
    const c = connect(own.url, {
      token: () => {
        if (++n === 4) refreshed.resolve();
        return `good ${n}`;
      },
      refreshAfter: 30,
    });
    let opens = 0;
    c.on('open', () => opens++);
    expect(await c.call('/whoami')).toBe('good 1');
    await refreshed.promise;
    await c.authenticate();
    expect(await c.call('/whoami')).toMatch(/^good ([4-9]|\d\d)/);
    expect(opens).toBe(1);
  });
  test('that are refused fail the attempt, and the next has another', async () => {
    let n = 0;
    const c = connect(own.url, { token: () => (++n < 3 ? 'bad' : 'good at last'), queue: 5 }), error = event(c, 'error');
    expect(await c.call('/whoami')).toBe('good at last');
    expect([(await error)[0].code, (await error)[0].message]).toEqual([Code.Unauthenticated, 'bad token']);
  });
  test('that are refused fail waiting calls without a queue', async () => {
    const c = connect(own.url, { token: () => 'bad' });
    const e = await failure(c.call('/whoami'), Code.Unavailable);
    expect((e.cause as ArpcError).code).toBe(Code.Unauthenticated);
  });
  test('a function that throws fails the attempt', async () => {
    const c = connect(own.url, { token: () => Promise.reject(new Error('no session')), reconnect: false }), error = event(c, 'error');
    await failure(c.call('/whoami'), Code.Unavailable);
    expect((await error)[0].message).toBe('no session');
  });
  test('without one the server refuses', async () => {
    const c = connect(own.url);
    await failure(c.call('/whoami'), Code.Unauthenticated);
    await failure(c.authenticate(), Code.FailedPrecondition);
  });
  test('a refused refresh closes the connection', async () => {
    let n = 0;
    const c = await opened(connect(own.url, { token: () => (++n === 2 ? 'bad' : 'good') })), closing = event(c, 'close');
    await failure(c.authenticate(), Code.Unauthenticated);
    expect((await closing)[0].message).toMatch(/authentication failed/);
    await event(c, 'open');
    expect(await c.call('/whoami')).toBe('good');
  });
});

// Against a peer that the test plays: old ones, odd ones and hostile ones.

import { describe, expect, test } from 'vitest';
import { ArpcError, Client, Code, type ClientOptions } from '@arpc-go/arpc';
import WebSocket from 'ws';
import { Client as Source } from '../src/client.js';
import { json } from '../src/codec.js';
import { decodeError, encodeError, ArpcError as SourceError } from '../src/error.js';
import { Cmd, empty, Flag, text } from '../src/frame.js';
import { decodeHello, type Hello } from '../src/hello.js';
import { connect, event, failure, later, unhex } from './helper.js';
import { frame, Peer, type Conn } from './peer.js';

async function pair(h?: Partial<Hello>, options: ClientOptions = {}): Promise<{ client: Client; conn: Conn; peer: Peer }> {
  const peer = await Peer.start(), client = connect(peer.url, options), conn = await peer.accept(), open = event(client, 'open');
  await conn.greet(h);
  await open;
  return { client, conn, peer };
}

const closes = async (conn: Conn): Promise<{ code: number; reason: string }> => conn.closed;
const u32 = (n: number): Uint8Array => new Uint8Array(new Uint32Array([n]).buffer);
/** Waits until the client has handled what was sent to it, and makes sure that it has sent nothing else. */
const settled = async (conn: Conn): Promise<void> => {
  conn.send(Cmd.Ping, 0, 0, '');
  for (;;) {
    const f = await conn.next();
    if (f.cmd === Cmd.Pong) return;
    throw new Error(`unexpected frame ${f.hex.slice(0, 100)}`);
  }
};

describe('the beginning', () => {
  test('the first frame is a HELLO, and nothing follows before its answer', async () => {
    const peer = await Peer.start(), client = connect(peer.url), conn = await peer.accept();
    const call = client.call('/e', 'hi');
    const hello = await conn.next();
    expect(hello.hex.slice(0, 32)).toBe('25000000000400000000000000000000');
    expect(decodeHello(hello.rest)).toMatchObject({ features: 31, streams: 1024 });
    conn.send(Cmd.Ping, 0, 0, '', 'body');
    expect((await conn.next()).hex).toBe('00000000000500000000000000000000'); // answered as in version 1
    expect(conn.some).toBe(false);
    expect(client.state).toBe('connecting');
    conn.send(Cmd.Pong, 0, 0, '');
    const req = await conn.next();
    expect(req.hex).toBe('040000000001000201000000000000002f656869');
    conn.send(Cmd.Response, 0, 1, '/e', 'ho');
    expect(await call).toBe('ho');
  });
  test('version 1 only: no HELLO', async () => {
    const peer = await Peer.start(), client = connect(peer.url, { version: 1 }), conn = await peer.accept();
    const call = client.call('/e', 'hi');
    expect((await conn.next()).hex).toBe('040000000001000201000000000000002f656869');
    conn.send(Cmd.Response, 0, 1, '/e', '1');
    expect(await call).toBe(1);
  });
  test('a peer that does not answer in time is given up, and tried again', async () => {
    const peer = await Peer.start(), client = connect(peer.url, { handshake: 50 }), error = event(client, 'error');
    const first = await peer.accept();
    expect((await error)[0].code).toBe(Code.DeadlineExceeded);
    expect((await closes(first)).reason).toBe('no answer in time');
    await (await peer.accept()).greet({});
    await event(client, 'open');
  });
  test('one that has answered is not', async () => {
    const { client, conn } = await pair({}, { handshake: 200 });
    const closing = event(client, 'close').then(() => 'closed');
    const call = failure(client.call('/e', 1, { timeout: 400 }), Code.DeadlineExceeded);
    expect(await Promise.race([call.then(() => 'timeout'), closing])).toBe('timeout');
    expect((await conn.next()).cmd).toBe(Cmd.Request);
  });
  test('what waits is sent after onConnect, on the connection that is there then', async () => {
    const gates = [later(), later()];
    let hooks = 0;
    const peer = await Peer.start(), client = connect(peer.url, { queue: 5, onConnect: () => gates[hooks++]!.promise });
    const call = client.call('/e', 'waited'), first = await peer.accept();
    let open = event(client, 'open');
    await first.greet({});
    await open;
    await settled(first);
    expect(hooks).toBe(1);
    open = event(client, 'open');
    first.ws.close();
    const second = await peer.accept();
    await second.greet({});
    await open;
    gates[0]!.resolve();
    expect(client.notify('/n')).toBe(true);
    expect((await second.next()).method).toBe('/n');
    await settled(second);
    gates[1]!.resolve();
    const req = await second.next();
    expect(req.method).toBe('/e');
    second.send(Cmd.Response, 0, req.seq, '/e', 'yes');
    expect(await call).toBe('yes');
  });
  test.each([['malformed', '61727063'], ['a feature that was not offered', '617270630220000020000000000010000004000000200000000020000a000000']])(
    'an answer that is %s closes', async (_, body) => {
      const peer = await Peer.start(), client = connect(peer.url), conn = await peer.accept(), error = event(client, 'error');
      await conn.next();
      conn.send(Cmd.Pong, 0, 0, '', unhex(body));
      expect((await error)[0].message).toMatch(/HELLO/);
      expect((await closes(conn)).code).toBe(4000);
    });
  test('further pongs are ignored', async () => {
    const { client, conn } = await pair({});
    conn.send(Cmd.Pong, 0, 0, '', '61727063');
    conn.send(Cmd.Pong, 0, 0, '', unhex('61727063'));
    await settled(conn);
    expect(client.state).toBe('open');
  });
});

describe('version 1', () => {
  test('one frame in a message; no metadata, deadline or CANCEL', async () => {
    const { client, conn } = await pair();
    const control = new AbortController();
    const calls = [1, 2, 3].map((i) => client.call('/e', i, { metadata: { k: 'v' }, signal: control.signal }));
    const before = conn.messages;
    for (let i = 1; i <= 3; i++) {
      const f = await conn.next();
      expect([f.cmd, f.flag, f.seq, f.method, text(f.rest)]).toEqual([Cmd.Request, 0, BigInt(i), '/e', `${i}`]);
    }
    expect(conn.messages - before).toBe(3);
    const all = Promise.all(calls.map((c) => failure(c, Code.Canceled)));
    control.abort();
    await all;
    expect(client.notify('/n', 'x', { metadata: { k: 'v' } })).toBe(true);
    expect((await conn.next()).hex).toBe('030000000003020204000000000000002f6e78');
    // Late answers are ignored.
    conn.send(Cmd.Response, 0, 1, '/e', 'late');
    await settled(conn);
    expect(client.state).toBe('open');
  });
  test.each([
    ['method not found', Code.Unimplemented], ['too many requests in line', Code.ResourceExhausted], ['server is shutting down', Code.Unavailable],
    ['internal error: the handler panicked', Code.Internal], ['the connection is not authenticated', Code.Unauthenticated],
    ['toString', Code.Unknown], ['anything', Code.Unknown],
  ])('the text %s has code %i', async (message, code) => {
    const { client, conn } = await pair();
    const call = failure(client.call('/e'), code);
    conn.send(Cmd.Response, Flag.Error, (await conn.next()).seq, '/e', message);
    expect(await call).toMatchObject({ message, remote: true, details: [] });
  });
  test('higher flags are ignored', async () => {
    const { client, conn } = await pair();
    const call = client.call('/e');
    conn.send(Cmd.Response, 0xfc, (await conn.next()).seq, '/e', 'text');
    expect(await call).toBe('text');
  });
  test('requests of the peer are answered with method, number and async bit', async () => {
    const { client, conn } = await pair();
    client.handle('/é', () => 'r');
    client.handle('/er', () => {
      throw new ArpcError(Code.NotFound, 'bad');
    });
    conn.raw(unhex('04000000 00 01 02 03 ffffffffffffff7f 2fc3a971'));
    expect((await conn.next()).hex).toBe('0400000000020203ffffffffffffff7f2fc3a972');
    conn.raw(unhex('03000000 00 01 00 03 0000000000000080 2f6572'));
    expect((await conn.next()).hex).toBe('060000000002010300000000000000802f6572626164');
    conn.send(Cmd.Request, 0, 12, '/zz');
    expect((await conn.next()).hex).toBe('13000000000201030c000000000000002f7a7a6d6574686f64206e6f7420666f756e64');
  });
  test('commands of version 2 close the connection', async () => {
    for (const cmd of [Cmd.Cancel, Cmd.Credit, Cmd.Reset, Cmd.GoAway, 0, 11, 63]) {
      const { client, conn } = await pair(), closing = event(client, 'close');
      conn.send(cmd, 0, 0, '', unhex('01000000'));
      expect((await closing)[0].message).toMatch(/malformed frame: command/);
      client.close();
    }
  });
  test('streams', async () => {
    const { client, conn } = await pair();
    const s = await client.stream<string, string>('/s', { metadata: { k: 'v' }, timeout: 60_000 });
    await s.send('a');
    expect((await conn.next()).hex).toBe('030000000086000201000000000000002f7361');
    conn.send(Cmd.Stream, 0, 1, '/s', 'ra');
    conn.send(Cmd.Stream, 0, 1, '/s', ''); // nothing in version 1
    conn.send(Cmd.Stream | Cmd.Last, 0, 1, '/s', 'rb');
    const got: string[] = [];
    for await (const m of s) got.push(m);
    expect(got).toEqual(['ra', 'rb']);
    await failure(s.send(''), Code.InvalidArgument);
    expect(await failure(async () => s.trySend(''), Code.InvalidArgument)).toBeTruthy();
    await s.send('x'.repeat(100_000)); // in one frame
    expect((await conn.next()).rest).toHaveLength(100_000);
    await s.closeSend();
    expect((await conn.next()).hex).toBe('0200000000c6000201000000000000002f73');
    expect(s.signal.aborted).toBe(true);
  });
  test('a stream that is opened by the peer, and one without a handler', async () => {
    const { client, conn } = await pair();
    client.handleStream<string, string>('/s', async (s) => {
      for await (const m of s) await s.send('got ' + m);
    });
    conn.send(Cmd.Stream | Cmd.Own, 0, 7, '/none', 'x');
    conn.send(Cmd.Stream | Cmd.Own, 0, 17, '/s', 'a');
    conn.send(Cmd.Stream | Cmd.Own | Cmd.Last, 0, 17, '/s', 'b');
    expect((await conn.next()).hex).toBe('070000000006000211000000000000002f73676f742061');
    expect((await conn.next()).hex).toBe('070000000006000211000000000000002f73676f742062');
    expect((await conn.next()).hex).toBe('020000000046000211000000000000002f73');
  });
  test('a stream that nobody reads ends, and the connection goes on', async () => {
    const { client, conn } = await pair();
    const s = await client.stream('/s');
    await s.send('x');
    await conn.next();
    for (let i = 0; i < 1100; i++) conn.send(Cmd.Stream, 0, 1, '/s', 'm');
    const end = await conn.next();
    expect([end.cmd, end.seq]).toEqual([Cmd.Stream | Cmd.Own | Cmd.Last, 1n]);
    await settled(conn); // the rest is dropped
    await failure(s.next(), Code.ResourceExhausted);
    const call = client.call('/e');
    conn.send(Cmd.Response, 0, (await conn.next()).seq, '/e', 'fine');
    expect(await call).toBe('fine');
  });
});

describe('messages and frames', () => {
  test('many frames in one message, and frames over many messages', async () => {
    const { client, conn } = await pair({});
    const calls = [1, 2, 3, 4].map((i) => client.call('/e', i));
    const reqs = [await conn.next(), await conn.next(), await conn.next(), await conn.next()];
    const answers = reqs.map((r) => frame(Cmd.Response, 0, r.seq, '/e', `${text(r.rest.slice(4))}0`));
    const note = later<unknown>();
    client.handle('/n', (v) => note.resolve(v));
    const all = Buffer.concat([...answers.slice(0, 3), frame(Cmd.Notify, 0, 0, '/n', 'note'), frame(Cmd.Ping, 0, 0, ''), answers[3]!]);
    conn.raw(all.subarray(0, 5));
    for (const b of all.subarray(5, 45)) conn.raw(Uint8Array.of(b));
    conn.raw(all.subarray(45));
    expect(await Promise.all(calls)).toEqual([10, 20, 30, 40]);
    expect(await note.promise).toBe('note');
    expect((await conn.next()).cmd).toBe(Cmd.Pong);
  });
  test('text messages are bytes as well', async () => {
    const { client, conn } = await pair({});
    const call = client.call('/e');
    await conn.next();
    conn.ws.send(Buffer.from(frame(Cmd.Response, 0, 1, '/e', 'text')).toString('latin1'), { binary: false });
    expect(await call).toBe('text');
  });
  test('what is sent in one turn shares a message of version 2', async () => {
    const { client, conn } = await pair({});
    for (let i = 0; i < 100; i++) client.notify('/n', i);
    const messages = new Set<number>();
    for (let i = 0; i < 100; i++) {
      const f = await conn.next();
      expect(text(f.rest)).toBe(`${i}`);
      messages.add(f.message);
    }
    expect(messages.size).toBe(1);
  });
  test('large frames do not share messages with others', async () => {
    const { client, conn } = await pair({});
    client.notify('/n', 'a');
    client.notify('/n', new Uint8Array(100_000));
    client.notify('/n', 'b');
    const got = [await conn.next(), await conn.next(), await conn.next()];
    expect(got.map((f) => f.rest.length)).toEqual([1, 100_000, 1]);
    expect(new Set(got.map((f) => f.message)).size).toBe(3);
  });
  test('numbers beyond 2^32 and 2^53', async () => {
    const peer = await Peer.start(), client = new Source(peer.url, { WebSocket }), conn = await peer.accept();
    await conn.greet({});
    for (const start of [2 ** 32 - 2, 2 ** 40]) {
      client.seq = start;
      for (let i = 1; i <= 3; i++) {
        const call = client.call('/e', i), f = await conn.next();
        expect(f.seq).toBe(BigInt(start) + BigInt(i));
        conn.send(Cmd.Response, 0, f.seq, '/e', f.rest.slice(4)); // after the deadline
        expect(await call).toBe(i);
      }
    }
    const cancelled = later<unknown>();
    client.handle('/h', (_, ctx) => new Promise((_, reject) => ctx.signal.addEventListener('abort', () => {
      cancelled.resolve(ctx.signal.reason);
      reject(ctx.signal.reason);
    })));
    conn.send(Cmd.Request, 0, 2n ** 64n - 1n, '/h');
    conn.send(Cmd.Cancel, 0, 2n ** 53n, '', unhex('01'));
    conn.send(Cmd.Cancel, 0, 2n ** 64n - 1n, '', unhex('0161'));
    expect(await cancelled.promise).toMatchObject({ message: 'cancelled by the caller: a' });
    expect((await conn.next()).seq).toBe(2n ** 64n - 1n);
    client.close();
  });
  test('answers of nobody, second answers and odd method lengths', async () => {
    const { client, conn } = await pair({});
    conn.send(Cmd.Response, 0, 99, '/e', 'x');
    conn.raw(unhex('01000000 00 02 00 00 0100000000000000 61'), unhex('01000000 00 03 00 00 0000000000000000 61'));
    conn.raw(unhex('02000000 00 01 02 05 0700000000000000 6162'));
    const bad = await conn.next();
    expect([bad.cmd, bad.flag, bad.seq, bad.method]).toEqual([Cmd.Response, Flag.Error | Flag.Coded | Flag.Async, 7n, 'ab']);
    expect(decodeError(bad.rest, json).code).toBe(Code.InvalidArgument);
    conn.send(Cmd.Notify, 0, 0, '/unknown', 'x');
    const call = client.call('/e');
    await conn.next();
    conn.send(Cmd.Response, 0, 1, '', 'x'); // dropped: it has no method
    conn.send(Cmd.Response, 0, 1, '/other', 'one');
    conn.send(Cmd.Response, 0, 1, '/e', 'two');
    expect(await call).toBe('one');
  });
  test.each([
    ['a body above the limit', '01000004 0003000000000000 00000000'], ['an unknown command', '00000000 002a000000000000 00000000'],
    ['a CANCEL without a code', '00000000 0007000000000000 00000000'], ['a CANCEL with another code', '01000000 0007000000000000 00000000 02'],
    ['a CREDIT of 3 bytes', '03000000 0008000000000000 00000000 010101'], ['too much credit', '04000000 0008000000000000 00000000 ffffffff'],
    ['a GOAWAY with a method', '02000000 000a000100000000 00000000 6161'], ['metadata that is not there', '02000000 0003040200000000 00000000 2f6e'],
    ['a stream frame with data and without', '03000000 0086a00201000000 00000000 2f7361'],
    ['a stream frame that goes on and is the last', '03000000 00c6600201000000 00000000 2f7361'],
  ])('%s closes the connection with a reason', async (_, b) => {
    const { client, conn, peer } = await pair({}), closing = event(client, 'close');
    client.handleStream('/s', () => {});
    conn.raw(unhex(b));
    expect((await closing)[0].remote).toBe(false);
    const farewell = await conn.next();
    expect([farewell.cmd, farewell.flag]).toEqual([Cmd.GoAway, Flag.Error]);
    expect(decodeError(farewell.rest, json).message).toBeTruthy();
    expect((await closes(conn)).code).toBe(4000);
    await (await peer.accept()).greet({}); // and it comes back
    await event(client, 'open');
  });
});

describe('calls of version 2', () => {
  test('deadline, metadata and CANCEL in bytes', async () => {
    const { client, conn } = await pair({});
    const control = new AbortController();
    const call = failure(client.call('/e', 'p', { timeout: Infinity, metadata: { k: 'vv' }, signal: control.signal }), Code.Canceled);
    expect((await conn.next()).hex).toBe('0b00000000010402010000000000000 02f65 0600016b0200767670'.replaceAll(' ', ''));
    control.abort(new Error('why'));
    await call;
    expect((await conn.next()).hex).toBe('0400000000070000010000000000000001776879');
    const timed = failure(client.call('/e', 'p', { timeout: 30 }), Code.DeadlineExceeded);
    const f = await conn.next();
    expect(f.flag).toBe(Flag.Deadline);
    expect(new DataView(f.rest.buffer).getUint32(0, true)).toBeLessThanOrEqual(30);
    await timed;
    await settled(conn); // there is no CANCEL
  });
  test('a reason that says when it was aborted for a time still cancels', async () => {
    const { client, conn } = await pair({});
    const call = failure(client.call('/e', 'p', { signal: AbortSignal.timeout(20) }), Code.DeadlineExceeded);
    await conn.next();
    await call;
    expect((await conn.next()).cmd).toBe(Cmd.Cancel);
  });
  test('without the features nothing of them is sent', async () => {
    const { client, conn } = await pair({ features: 0, window: 0, windows: 0 });
    const control = new AbortController();
    const call = failure(client.call('/e', 'p', { metadata: { k: 'v' }, signal: control.signal }), Code.Canceled);
    expect((await conn.next()).flag).toBe(0);
    control.abort();
    await call;
    client.handle('/er', () => {
      throw new ArpcError(Code.NotFound, 'bad');
    });
    conn.send(Cmd.Request, 0, 8, '/er');
    expect((await conn.next()).hex).toBe('060000000002010308000000000000002f6572626164');
  });
  test('a farewell is the reason of what fails', async () => {
    const { client, conn } = await pair({});
    const call = failure(client.call('/e'), Code.Unavailable), closing = event(client, 'close');
    await conn.next();
    conn.send(Cmd.GoAway, Flag.Error, 0, '', encodeError(new SourceError(Code.PermissionDenied, 'you again'), json));
    conn.ws.close(1008);
    expect((await call).message).toBe('connection lost: the peer says: you again');
    expect((await closing)[0]).toMatchObject({ code: Code.PermissionDenied, message: 'you again', remote: true });
  });
  test('the reason of a WebSocket close is one too', async () => {
    const { client, conn } = await pair();
    const call = failure(client.call('/e'), Code.Unavailable);
    conn.ws.close(1001, 'going home');
    expect((await call).message).toBe('connection lost: going home');
  });
  test('close says why, at the peer too', async () => {
    const { client, conn } = await pair({});
    client.close('bye 🦊');
    const f = await conn.next();
    expect([f.cmd, f.flag, decodeError(f.rest, json).message]).toEqual([Cmd.GoAway, Flag.Error, 'bye 🦊']);
    expect(await closes(conn)).toEqual({ code: 1000, reason: 'bye 🦊' });
  });
  test('a drain: nothing new on the connection, which is closed when all is answered', async () => {
    const { client, conn, peer } = await pair({});
    const call = client.call('/e');
    const req = await conn.next(), again = event(client, 'open');
    const drain = frame(Cmd.GoAway, 0, 0, '', encodeError(new SourceError(Code.Unavailable, 'restart'), json));
    conn.raw(drain, drain);
    const next = await peer.accept();
    const waits = client.call('/f', 'waits');
    await next.greet({});
    await again;
    const f = await next.next();
    expect(f.method).toBe('/f');
    next.send(Cmd.Response, 0, f.seq, '/f', 'new');
    expect(await waits).toBe('new');
    conn.send(Cmd.Response, 0, req.seq, '/e', 'old');
    expect(await call).toBe('old');
    expect((await closes(conn)).code).toBe(1000);
    expect(client.state).toBe('open');
  });
  test('a drain before the connection is ready makes another attempt', async () => {
    const peer = await Peer.start(), client = connect(peer.url, { token: () => 't' }), conn = await peer.accept();
    await conn.greet({});
    expect((await conn.next()).method).toBe('arpc.auth');
    conn.send(Cmd.GoAway, 0, 0, '', encodeError(new SourceError(Code.Unavailable, 'restart'), json));
    const next = await peer.accept();
    await next.greet({});
    next.send(Cmd.Response, 0, (await next.next()).seq, 'arpc.auth');
    await event(client, 'open');
  });
  test('a peer that is silent is given up', async () => {
    const { client, conn } = await pair({}, { keepalive: { interval: 30, timeout: 90 } });
    const closing = event(client, 'close');
    const pings: number[] = [];
    for (let i = 0; i < 3; i++) {
      const f = await conn.next();
      expect(f.hex).toBe('00000000000400000000000000000000');
      pings.push(i);
      if (i < 1) conn.send(Cmd.Pong, 0, 0, '');
    }
    expect((await closing)[0].message).toBe('the peer does not answer');
  });
});

describe('streams of version 2', () => {
  const open = async (h: Partial<Hello> = {}, options: ClientOptions = {}) => {
    const p = await pair(h, options);
    const stream = await p.client.stream<string, string>('/s', { as: 'text' });
    return { ...p, stream };
  };
  test('frames in bytes', async () => {
    const { stream, conn } = await open();
    const first = stream.next();
    expect((await conn.next()).hex).toBe('020000000086a00201000000000000002f73'); // open, no data: the peer may begin
    conn.send(Cmd.Stream, 0, 1, '/s', '');
    expect(await first).toEqual({ done: false, value: '' });
    await stream.send('');
    expect((await conn.next()).hex).toBe('020000000086000201000000000000002f73');
    await stream.send('x'.repeat(5000));
    const sizes = [await conn.next(), await conn.next(), await conn.next()].map((f) => [f.cmd, f.flag, f.rest.length]);
    expect(sizes).toEqual([[0x86, Flag.More, 2048], [0x86, Flag.More, 2048], [0x86, 0, 904]]); // a quarter of the window
    await stream.closeSend();
    expect((await conn.next()).hex).toBe('0200000000c6800201000000000000002f73');
    conn.send(Cmd.Stream, Flag.More, 1, '/s', 'a');
    conn.send(Cmd.Stream, Flag.More, 1, '/s', 'b');
    conn.send(Cmd.Stream, 0, 1, '/s', 'c');
    conn.send(Cmd.Stream | Cmd.Last, Flag.NoData, 1, '/s');
    expect(await stream.next()).toEqual({ done: false, value: 'abc' });
    expect(await stream.next()).toEqual({ done: true, value: undefined });
    stream.reset(); // over already
    await settled(conn);
  });
  test('metadata and deadline go with the first frame', async () => {
    const { client, conn } = await pair({});
    const s = await client.stream('/s', { metadata: { k: 'v' }, timeout: 10_000 });
    await s.send('x');
    const f = await conn.next();
    expect(f.flag).toBe(Flag.Open | Flag.Deadline | Flag.Metadata);
    await s.send('y');
    expect((await conn.next()).flag).toBe(0);
  });
  test('credit of the stream and of the connection', async () => {
    const { client, conn, stream } = await open({ window: 4096, windows: 6144 });
    const other = await client.stream<string, string>('/t', { as: 'text' });
    let sent = 0;
    const sending = (async () => {
      for (let i = 0; i < 6; i++) {
        await stream.send('x'.repeat(1024));
        sent++;
      }
    })();
    for (let i = 0; i < 4; i++) await conn.next();
    await settled(conn);
    expect(sent).toBe(4); // the stream's credit is spent
    for (let i = 0; i < 2; i++) await other.send('y'.repeat(1024)); // other streams go on
    await conn.next();
    await conn.next();
    expect(other.trySend('y')).toBe(false); // the connection's credit is spent
    expect(other.trySend('')).toBe(true); // which costs nothing
    await conn.next();
    conn.send(Cmd.Credit, 0, 1, '', u32(1024));
    await settled(conn);
    expect(sent).toBe(4);
    conn.send(Cmd.Credit, 0, 0, '', u32(1024));
    expect((await conn.next()).rest).toHaveLength(1024);
    conn.send(Cmd.Credit, 0, 0, '', u32(8192));
    conn.send(Cmd.Credit, 0, 1, '', u32(8192));
    await sending;
    expect((await conn.next()).rest).toHaveLength(1024);
    conn.send(Cmd.Credit, 0, 77, '', u32(1)); // of nobody
    await settled(conn);
    expect(client.state).toBe('open');
  });
  test('a message that waits for credit is what it was when it was sent', async () => {
    const { client, conn } = await pair({ window: 4096, windows: 4096 });
    const s = await client.stream<unknown, Uint8Array>('/s'), b = new Uint8Array(1024).fill(1);
    const all = Promise.all([1, 2, 3, 4, 5].map(() => s.send(b)));
    b.fill(2);
    conn.send(Cmd.Credit, 0, 0, '', u32(1024));
    conn.send(Cmd.Credit, 0, 1, '', u32(1024));
    await all;
    for (let i = 0; i < 5; i++) expect(new Set((await conn.next()).rest)).toEqual(new Set([1]));
  });
  test('credit is given back when half a window was taken', async () => {
    const { conn, stream } = await open({}, { limits: { streamWindow: 4096, streamWindows: 8192 } });
    const next = stream.next();
    await conn.next();
    const message = 'x'.repeat(1024);
    for (let i = 0; i < 4; i++) conn.send(Cmd.Stream, 0, 1, '/s', message);
    await next;
    await settled(conn); // nothing was given back for what nobody has taken
    await stream.next();
    expect((await conn.next()).hex).toBe('0400000000880000010000000000000000080000');
    await stream.next();
    await stream.next();
    const both = [await conn.next(), await conn.next()].map((f) => f.hex).sort();
    expect(both).toEqual(['0400000000080000000000000000000000100000', '0400000000880000010000000000000000080000']);
  });
  test('more than there is credit for on all streams closes the connection', async () => {
    const { client, conn } = await open({}, { limits: { streamWindow: 4096, streamWindows: 6000 } }), closing = event(client, 'close');
    client.handleStream('/p', () => new Promise(() => {}));
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 3, '/p', 'x'.repeat(4096));
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 5, '/p', 'x'.repeat(1904));
    await settled(conn);
    conn.send(Cmd.Stream | Cmd.Own, 0, 5, '/p', 'x');
    expect((await closing)[0].code).toBe(Code.ResourceExhausted);
  });
  test('what is dropped counts as taken for the connection', async () => {
    const { client, conn } = await open({}, { limits: { streamWindow: 4096, streamWindows: 8192 } });
    for (let i = 0; i < 20; i++) conn.send(Cmd.Stream | Cmd.Own, 0, 99, '/p', 'x'.repeat(1024)); // of no stream
    let credit = 0;
    while (credit < 20 * 1024 - 4096) {
      const f = await conn.next();
      expect([f.cmd, f.seq]).toEqual([Cmd.Credit, 0n]);
      credit += new DataView(f.rest.buffer).getUint32(0, true);
    }
    expect(client.state).toBe('open');
  });
  test('a stream on which more comes than it may is reset', async () => {
    const { conn, client } = await open({}, { limits: { streamWindow: 4096, streamWindows: 65536 } });
    const held = later();
    client.handleStream('/p', () => held.promise);
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 3, '/p', 'x'.repeat(4096));
    conn.send(Cmd.Stream | Cmd.Own, 0, 3, '/p', 'x');
    const f = await conn.next();
    expect([f.cmd, f.seq, decodeError(f.rest, json).code]).toEqual([Cmd.Reset, 3n, Code.ResourceExhausted]);
    held.resolve();
    expect(client.state).toBe('open');
  });
  test('empty messages that nobody takes are bounded', async () => {
    const { conn, client } = await open();
    client.handleStream('/p', () => new Promise(() => {}));
    conn.raw(frame(Cmd.Stream | Cmd.Own, Flag.Open, 3, '/p'), ...Array.from({ length: 1100 }, () => frame(Cmd.Stream | Cmd.Own, 0, 3, '/p')));
    const f = await conn.next();
    expect([f.cmd, f.seq, decodeError(f.rest, json).code]).toEqual([Cmd.Reset, 3n, Code.ResourceExhausted]);
  });
  test('what was reset or has ended and nobody takes counts as taken, and can be taken', async () => {
    const { client, conn } = await open({}, { limits: { streamWindow: 4096, streamWindows: 8192 } });
    const first = later<AsyncIterableIterator<string>>();
    client.handleStream<string, string>('/p', (s) => {
      first.resolve(s as never);
      return new Promise(() => {});
    });
    for (let i = 10; i < 20; i++) {
      conn.send(Cmd.Stream | Cmd.Own, Flag.Open, i, '/p', 'x'.repeat(4096));
      conn.send(Cmd.Reset | Cmd.Own, Flag.Error | Flag.Coded, i, '', encodeError(new SourceError(Code.Aborted, ''), json));
      const f = await conn.next();
      expect([f.cmd, f.seq, new DataView(f.rest.buffer).getUint32(0, true)]).toEqual([Cmd.Credit, 0n, 4096]);
    }
    expect((await (await first.promise).next()).value).toHaveLength(4096);
    await settled(conn);
    expect(client.state).toBe('open');
  });
  test('a message whose pieces are above the limit is refused', async () => {
    const { conn, stream } = await open({}, { limits: { body: 8192 } });
    const next = failure(stream.next(), Code.ResourceExhausted);
    await conn.next();
    for (let i = 0; i < 3; i++) conn.send(Cmd.Stream, Flag.More, 1, '/s', 'x'.repeat(4000));
    expect((await next).message).toMatch(/above the limit/);
    expect((await conn.next()).cmd).toBe(Cmd.Reset | Cmd.Own);
  });
  test('streams that are not wanted are refused, and those that are over are ignored', async () => {
    const { conn, client } = await open({}, { limits: { streams: 1 } });
    client.handleStream('/p', () => new Promise(() => {}));
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 2, '/none');
    expect(decodeError((await conn.next()).rest, json).code).toBe(Code.Unimplemented);
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 3, '/p');
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 4, '/p');
    const f = await conn.next();
    expect([f.seq, decodeError(f.rest, json).code]).toEqual([4n, Code.ResourceExhausted]);
    conn.send(Cmd.Stream | Cmd.Own, 0, 4, '/p', 'late');
    conn.send(Cmd.Stream, 0, 99, '/p', 'of nobody');
    conn.send(Cmd.Reset, Flag.Error | Flag.Coded, 99, '', encodeError(new SourceError(Code.Aborted, ''), json));
    await settled(conn);
    expect(client.state).toBe('open');
  });
  test('this side opens no more than the peer wants', async () => {
    const { client } = await pair({ streams: 2 });
    const s = await client.stream('/s');
    await client.stream('/s');
    await failure(client.stream('/s'), Code.ResourceExhausted);
    s.reset();
    await client.stream('/s');
  });
  test('a reset of the peer ends both directions; what has arrived can still be taken', async () => {
    const { conn, stream } = await open();
    await stream.send('x');
    conn.send(Cmd.Stream, 0, 1, '/s', 'last words');
    conn.send(Cmd.Reset, Flag.Error | Flag.Coded, 1, '', encodeError(new SourceError(Code.Aborted, 'no'), json));
    await conn.next();
    await settled(conn);
    expect((await stream.next()).value).toBe('last words');
    expect((await failure(stream.next(), Code.Aborted)).message).toBe('no');
    await failure(stream.send('y'), Code.Aborted);
    await failure(() => stream.trySend('y'), Code.Aborted);
  });
  test('a handler sets metadata with its first frame, and its end is told', async () => {
    const { conn, client } = await open();
    client.handleStream<string, string>('/p', async (s, ctx) => {
      expect(ctx.deadline).toBeGreaterThan(Date.now());
      s.setMetadata('a', '1');
      s.setMetadata('b', '2');
      await s.send('x');
      expect(() => s.setMetadata('c', '3')).toThrow(ArpcError);
    });
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open, 3, '/p', empty, 60_000);
    const f = await conn.next();
    expect([f.flag, text(f.rest)]).toEqual([Flag.Metadata, '\x0a\x00\x01a\x01\x001\x01b\x01\x002x']);
    expect((await conn.next()).cmd).toBe(Cmd.Stream | Cmd.Last);
    const reset = await conn.next();
    expect([reset.cmd, decodeError(reset.rest, json)]).toMatchObject([Cmd.Reset, { code: Code.Canceled, message: "the stream's handler has returned" }]);
  });
  test('the deadline of a stream of the peer resets it', async () => {
    const { conn, client } = await open(), reason = later<unknown>();
    client.handleStream('/p', (_, ctx) => new Promise(() => ctx.signal.addEventListener('abort', () => reason.resolve(ctx.signal.reason))));
    conn.send(Cmd.Stream | Cmd.Own, Flag.Open | Flag.NoData, 3, '/p', empty, 20);
    expect(await reason.promise).toMatchObject({ code: Code.DeadlineExceeded });
    expect(decodeError((await conn.next()).rest, json).code).toBe(Code.DeadlineExceeded);
  });
});

test('a server of auth that never answers is given up', async () => {
  const peer = await Peer.start(), client = connect(peer.url, { token: () => 'secret', handshake: 60 }), error = event(client, 'error');
  const conn = await peer.accept();
  await conn.greet({});
  const f = await conn.next();
  expect([f.cmd, f.method, text(f.rest)]).toEqual([Cmd.Request, 'arpc.auth', 'secret']);
  expect((await error)[0].code).toBe(Code.DeadlineExceeded);
});

test('addresses', async () => {
  expect(() => new Client('not a url')).toThrow(TypeError);
  const peer = await Peer.start(), client = connect(peer.url.replace('ws:', 'http:'));
  await (await peer.accept()).greet({});
  await event(client, 'open');
});

test('without a WebSocket there is an error event, and no exception', async () => {
  const client = new Client('ws://127.0.0.1:1/', { reconnect: false });
  if (typeof globalThis.WebSocket === 'undefined') expect((await event(client, 'error'))[0].code).toBe(Code.FailedPrecondition);
  client.close();
});

test('a listener that throws does no harm, and one that was removed is not called', async () => {
  const peer = await Peer.start(), client = connect(peer.url), thrown = later<unknown>();
  const old = process.listeners('uncaughtException');
  process.removeAllListeners('uncaughtException').once('uncaughtException', (e) => thrown.resolve(e));
  client.on('open', () => {
    throw new Error('listener');
  });
  let calls = 0;
  client.on('open', () => calls++)();
  const open = event(client, 'open');
  await (await peer.accept()).greet({});
  await open;
  expect(((await thrown.promise) as Error).message).toBe('listener');
  expect(calls).toBe(0);
  for (const f of old) process.on('uncaughtException', f);
});

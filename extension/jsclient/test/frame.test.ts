// The bytes of frames, against the examples of docs/protocol.md, section 13, and rules of sections 15 to 18.

import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { json } from '../src/codec.js';
import { ArpcError, Code, cut, decodeError, encodeError } from '../src/error.js';
import { Cmd, empty, Flag, makeFrame, methodBytes, parseFrame, Splitter, text, utf8, type Seq } from '../src/frame.js';
import { decodeHello, encodeHello, Feature, type Hello } from '../src/hello.js';
import { decodeMetadata, encodeMetadata, validMetadata } from '../src/metadata.js';
import { Backoff } from '../src/reconnect.js';
import { hex, unhex } from './helper.js';

describe('examples of the specification', () => {
  const examples: [string, number, number, Seq, string, string, string][] = [
    ['call', Cmd.Request, 0, 2, '/e', 'hi', '040000000001000202000000000000002f656869'],
    ['answer', Cmd.Response, 0, 2, '/e', 'hi', '040000000002000202000000000000002f656869'],
    ['call with nothing', Cmd.Request, 0, 5, '/e', '', '020000000001000205000000000000002f65'],
    ['empty answer', Cmd.Response, 0, 7, '/nil', '', '040000000002000407000000000000002f6e696c'],
    ['error', Cmd.Response, Flag.Error, 8, '/er', 'bad', '060000000002010308000000000000002f6572626164'],
    ['structured error', Cmd.Response, Flag.Error, 11, '/es', '{"code":7}', '0d000000000201030b000000000000002f65737b22636f6465223a377d'],
    ['unknown method', Cmd.Response, Flag.Error, 12, '/zz', 'method not found',
      '13000000000201030c000000000000002f7a7a6d6574686f64206e6f7420666f756e64'],
    ['asynchronous call', Cmd.Request, Flag.Async, 13, '/e', 'as', '04000000000102020d000000000000002f656173'],
    ['its answer', Cmd.Response, Flag.Async, 13, '/e', 'as', '04000000000202020d000000000000002f656173'],
    ['asynchronous error', Cmd.Response, Flag.Async | Flag.Error, 14, '/er', 'bad', '06000000000203030e000000000000002f6572626164'],
    ['notification', Cmd.Notify, Flag.Async, 15, '/n', 'nt', '04000000000302020f000000000000002f6e6e74'],
    ['server notification', Cmd.Notify, 0, 1, '/b', 'bc', '040000000003000201000000000000002f626263'],
    ['first call of a browser', Cmd.Request, 0, 0, '/e', 'hi', '040000000001000200000000000000002f656869'],
    ['ping', Cmd.Ping, 0, 0, '', '', '00000000000400000000000000000000'],
    ['pong', Cmd.Pong, 0, 0, '', '', '00000000000500000000000000000000'],
    ['stream, of the creator', Cmd.Stream | Cmd.Own, 0, 17, '/s', 'a', '030000000086000211000000000000002f7361'],
    ['stream, of the other end', Cmd.Stream, 0, 17, '/s', 'ra', '040000000006000211000000000000002f737261'],
    ['last of the creator', Cmd.Stream | Cmd.Own | Cmd.Last, 0, 17, '/s', 'z', '0300000000c6000211000000000000002f737a'],
    ['end of the other end', Cmd.Stream | Cmd.Last, 0, 17, '/s', '', '020000000046000211000000000000002f73'],
  ];
  test.each(examples)('%s', (_, cmd, flag, seq, method, payload, want) => {
    const b = makeFrame(cmd, flag, seq, utf8(method), utf8(payload));
    expect(hex(b)).toBe(want);
    const f = parseFrame(b, true, 0);
    if (!method) return; // pings and pongs are not parsed
    expect(f).toMatchObject({ cmd, flag, seq });
    expect([text(f!.method), text(f!.payload)]).toEqual([method, payload]);
  });
  test('the specification still has them', () => {
    const spec = readFileSync(new URL('../../../docs/protocol.md', import.meta.url), 'utf8');
    for (const [name, , , , , , want] of examples) expect(spec, name).toContain(want);
  });
});

describe('frames', () => {
  test.each([[0, '0000000000000000'], [255, 'ff00000000000000'], [256, '0001000000000000'], [2 ** 32, '0000000001000000'],
    [Number.MAX_SAFE_INTEGER, 'ffffffffffff1f00'], [2n ** 53n, '0000000000002000'], [2n ** 64n - 1n, 'ffffffffffffffff'],
  ] as [Seq, string][])('number %s comes back', (seq, want) => {
    const b = makeFrame(Cmd.Request, 0, seq, utf8('/e'), empty);
    expect(hex(b.subarray(8, 16))).toBe(want);
    expect(parseFrame(b, false, 0)!.seq).toBe(seq);
  });
  test('deadline and metadata stand between method and payload, in this order', () => {
    const md = encodeMetadata({ k: 'vv' })!;
    const b = makeFrame(Cmd.Request, 0, 1, utf8('/e'), utf8('p'), 1000, md);
    expect(hex(b)).toBe('0f000000 00 01 0c 02 0100000000000000 2f65 e8030000 0600 01 6b 0200 7676 70'.replaceAll(' ', ''));
    expect(parseFrame(b, true, 6)).toMatchObject({ left: 1000 });
    expect(text(parseFrame(b, true, 6)!.payload)).toBe('p');
    expect(() => parseFrame(b, true, 5)).toThrow(ArpcError); // above the limit
    expect(parseFrame(b, false, 0)!.payload).toHaveLength(13); // version 1 ignores the flags
  });
  test.each([
    ['deadline cut off', '03000000 00 01 08 02 0000000000000000 2f65 01'],
    ['metadata length cut off', '03000000 00 01 04 02 0000000000000000 2f65 01'],
    ['metadata cut off', '05000000 00 01 04 02 0000000000000000 2f65 0200 01'],
    ['metadata malformed', '05000000 00 01 04 02 0000000000000000 2f65 0100 00'],
    ['control frame with a method', '02000000 00 07 00 01 0000000000000000 61 01'],
  ])('%s', (_, b) => {
    expect(() => parseFrame(unhex(b), true, 100)).toThrow(ArpcError);
  });
  test.each([['no method', '01000000 00 01 00 00 0000000000000000 61'], ['long method', `80000000 00 01 00 80 0000000000000000 ${'61'.repeat(128)}`],
    ['method above the body', '01000000 00 01 00 02 0000000000000000 61']])('%s is no frame', (_, b) => {
    expect(parseFrame(unhex(b), true, 0)).toBeUndefined();
  });
  test('methods have 1 to 127 bytes', () => {
    expect(methodBytes('é'.repeat(63))).toHaveLength(126);
    for (const m of ['', 'é'.repeat(64)]) expect(() => methodBytes(m)).toThrow(ArpcError);
  });
  test('any split into messages', () => {
    const frames = Array.from({ length: 40 }, (_, i) => makeFrame(Cmd.Notify, 0, i, utf8('/n'), new Uint8Array(i * 7).fill(i)));
    const all = new Uint8Array(Buffer.concat(frames));
    for (const size of [1, 2, 3, 15, 16, 17, 100, 1000, all.length]) {
      const s = new Splitter(1000), got: string[] = [];
      for (let at = 0; at < all.length; at += size) s.push(all.subarray(at, at + size), (f) => got.push(hex(f)));
      expect(got).toEqual(frames.map(hex));
    }
  });
  test('a body above the limit is refused by its header, after the frames before it', () => {
    const s = new Splitter(10), got: string[] = [];
    s.push(makeFrame(Cmd.Notify, 0, 0, utf8('/n'), new Uint8Array(8)), (f) => got.push(hex(f)));
    expect(got).toHaveLength(1);
    const two = new Uint8Array([...makeFrame(Cmd.Ping, 0, 0, empty, empty), ...unhex('0b000000 000000000000000000000000')]);
    expect(() => s.push(two, (f) => got.push(hex(f)))).toThrow(ArpcError);
    expect(got).toHaveLength(2);
  });
});

describe('HELLO', () => {
  const h: Hello = { features: Feature.All, body: 0x01020304, metadata: 5, window: 4096, windows: 8192, streams: 7 };
  const want = '61727063 02 20 0000 1f000000 04030201 05000000 00100000 00200000 07000000'.replaceAll(' ', '');
  test('bytes', () => {
    expect(hex(encodeHello(h, 'json'))).toBe(want + '046a736f6e');
    expect(hex(encodeHello(h, ''))).toBe(want);
    expect(hex(encodeHello(h, 'a,b'))).toBe(want);
    expect(decodeHello(encodeHello(h, 'json'))).toEqual(h);
  });
  test('a longer fixed part and a later version are accepted', () => {
    const b = unhex('61727063 03 24 0000 1f000000 04030201 05000000 00100000 00200000 07000000 ffffffff 0161');
    expect(decodeHello(b)).toEqual(h);
  });
  test('what is not a HELLO', () => {
    for (const b of ['', '61', '00000000', '41525043']) expect(decodeHello(unhex(b))).toBeUndefined();
  });
  test.each([
    ['short', want.slice(0, -2)], ['version 1', want.replace('6172706302', '6172706301')], ['short fixed part', want.replace('0220', '021f')],
    ['fixed part beyond the end', want.replace('0220', '0221')], ['unknown features', want.replace('1f000000', '3f000000')],
    ['body', want.replace('04030201', 'ff0f0000')], ['window', want.replace('00100000', 'ff0f0000')],
    ['connection window', want.replace('00200000', 'ff0f0000')], ['connection window too large', want.replace('00200000', '00000080')],
    ['empty name', want + '00'], ['name cut off', want + '0261'], ['name with a comma', want + '022c61'], ['too long', want + '016a'.repeat(2050)],
  ])('malformed: %s', (_, b) => {
    expect(() => decodeHello(unhex(b))).toThrow(/malformed HELLO/);
  });
});

describe('metadata', () => {
  test('pairs come back, bytes where they are no text', () => {
    const md = { a: 'b', 'ключ': '', __proto: 'x', long: 'v'.repeat(1000), raw: Uint8Array.of(0xff) };
    expect(decodeMetadata(encodeMetadata(md))).toEqual(md);
    expect(decodeMetadata(unhex('09 5f5f70726f746f5f5f 0100 78'))).toHaveProperty(['__proto__'], 'x');
  });
  test('none is no block, and later ones win', () => {
    expect(encodeMetadata()).toBeUndefined();
    expect(encodeMetadata({}, undefined)).toBeUndefined();
    expect(hex(encodeMetadata({ a: '1' }, { a: '2' })!)).toBe('0161010032');
    expect(decodeMetadata(unhex('0161010031 0161010032'))).toEqual({ a: '2' });
  });
  test.each(['00', '01', '0161', '016101', '01610100', '016101003100'])('malformed: %s', (b) => {
    expect(validMetadata(unhex(b))).toBe(false);
  });
  test('limits', () => {
    expect(encodeMetadata({ k: 'v'.repeat(65531) })).toHaveLength(65535);
    for (const [k, v] of [['k', 'v'.repeat(65532)], ['', 'v'], ['k'.repeat(256), 'v']]) expect(() => encodeMetadata({ [k!]: v! })).toThrow(/invalid metadata/);
  });
});

describe('errors', () => {
  test('bytes', () => {
    const e = new ArpcError(Code.NotFound, 'nö', { details: [{ name: 'd', value: { x: 1 } }, { name: 's', value: 'y' }] });
    expect(hex(encodeError(e, json))).toBe('05 02 03000000 6ec3b6 01 64 07000000 7b2278223a317d 01 73 01000000 79'.replaceAll(' ', ''));
    const back = decodeError(encodeError(e, json), json);
    expect(back).toMatchObject({ code: Code.NotFound, message: 'nö', remote: true });
    expect(back.details.map((d) => [d.name, d.value, hex(d.bytes!)])).toEqual([['d', { x: 1 }, '7b2278223a317d'], ['s', 'y', '79']]);
  });
  test('codes of 1 to 255 only', () => {
    for (const [code, want] of [[0, 2], [99, 99], [255, 255], [256, 2], [-1, 2]]) {
      expect(encodeError(new ArpcError(code as Code, ''), json)[0]).toBe(want);
    }
    expect(decodeError(unhex('63 00 00000000'), json).code).toBe(99);
  });
  test('a detail that cannot be encoded is left out', () => {
    const loop: { l?: unknown } = {};
    loop.l = loop;
    const e = new ArpcError(Code.Internal, '', { details: [{ name: 'bad', value: loop }, { name: 'n'.repeat(256), value: 1 }, { name: 'ok', value: 1 }] });
    expect(decodeError(encodeError(e, json), json).details.map((d) => d.name)).toEqual(['ok']);
    const many = new ArpcError(Code.Internal, '', { details: Array.from({ length: 300 }, (_, i) => ({ name: `${i}`, value: i })) });
    expect(decodeError(encodeError(many, json), json).details).toHaveLength(255);
  });
  test.each(['', '05', '0000000000 00', '0500 05000000 61', '0501 00000000', '0501 00000000 0161', '0501 00000000 0161 05000000 61'])('malformed: %s', (b) => {
    expect(decodeError(unhex(b), json)).toMatchObject({ code: Code.Internal, remote: true });
  });
  test('a long text is cut between characters', () => {
    expect(text(cut('aéé', 4))).toBe('aé');
    expect(text(cut('aéé', 5))).toBe('aéé');
    expect(text(cut('🦊', 3))).toBe('');
    expect(encodeError(new ArpcError(Code.Internal, 'x'.repeat(70_000)), json)).toHaveLength(6 + 65536);
  });
});

test('the waits between attempts double up to a limit, less a random part', () => {
  const b = new Backoff({ min: 100, max: 1000, jitter: 0 });
  expect(Array.from({ length: 6 }, () => b.next())).toEqual([100, 200, 400, 800, 1000, 1000]);
  b.connected();
  expect(b.next()).toBe(1000); // it did not last
  const r = new Backoff({ min: 100, max: 100, jitter: 0.5 });
  const waits = Array.from({ length: 200 }, () => r.next());
  expect(Math.min(...waits)).toBeGreaterThanOrEqual(50);
  expect(Math.max(...waits)).toBeLessThanOrEqual(100);
  expect(new Set(waits).size).toBeGreaterThan(100);
});

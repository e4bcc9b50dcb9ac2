// The classic script, in a page as old programs wrote it, which runs on the original as well.

import { execFileSync } from 'node:child_process';
import { createServer, type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import vm from 'node:vm';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import WebSocket from 'ws';
import { Cmd, Flag, makeFrame, parseFrame, text, utf8 } from '../src/frame.js';
import { later, startServer, type Server } from './helper.js';
import { Peer } from './peer.js';

interface Result {
  data: unknown;
  err: unknown;
}

interface Ctx {
  cli: Classic;
  head: Uint8Array;
  body: ArrayBuffer;
  method: string;
  data: unknown;
}

/** What old pages know of it. */
interface Classic {
  ws: unknown;
  url: string;
  state: number;
  seqNum: number;
  sessionMap: Record<string, unknown>;
  codec: { Marshal(v: unknown): Uint8Array; Unmarshal(b: ArrayBuffer): unknown };
  onOpen?: (c: Classic) => void;
  onClose?: (c: Classic) => void;
  onError?: (c: Classic) => void;
  handle(method: string, h: (ctx: Ctx) => unknown): void;
  call(method: string, req?: unknown, timeout?: number, cb?: (r: Result) => void, isHttp?: boolean): Promise<Result>;
  callHttp(method: string, req?: unknown, timeout?: number, cb?: (r: Result) => void): Promise<Result>;
  notify(method: string, req?: unknown, isHttp?: boolean): unknown;
  notifyHttp(method: string, req?: unknown): Promise<Result>;
  ping(): void;
  pong(): void;
  keepalive(ms?: number): void;
  shutdown(): void;
}

type Constructor = new (url: string, codec?: unknown, httpUrl?: string, httpMethod?: string) => Classic;

let server: Server;
const scripts: Record<string, string> = {};
beforeAll(async () => {
  server = await startServer();
  scripts.ours = readFileSync(new URL('../dist/arpc.js', import.meta.url), 'utf8');
  // The original is published as a Go module; it is read from the module cache, and not kept.
  const info = execFileSync('go', ['mod', 'download', '-json', 'github.com/lesismal/arpc@v1.2.16'], {
    cwd: '/', encoding: 'utf8', env: { ...process.env, GOFLAGS: '-mod=mod', GO111MODULE: 'on', GOWORK: 'off' },
  });
  scripts.original = readFileSync(join((JSON.parse(info) as { Dir: string }).Dir, 'extension/jsclient/arpc.js'), 'utf8');
});
afterAll(() => server.kill());

/** Loads a script as a page does; returns its globals. */
function page(script: string, globals: object = {}): { ArpcClient: Constructor } {
  const host = {
    AbortController, AbortSignal, ArrayBuffer, DataView, JSON, Promise, TextDecoder, TextEncoder, URL, Uint8Array, WebSocket, clearInterval,
    clearTimeout, console: { ...console, log: () => {} }, fetch, performance, queueMicrotask, setInterval, setTimeout, ...globals,
  };
  const g = vm.createContext({ ...host, window: host });
  vm.runInContext(script, g);
  return { ArpcClient: vm.runInContext('ArpcClient', g) as Constructor };
}

async function open(name: string, url = server.url, codec?: unknown): Promise<Classic> {
  const c = new (page(scripts[name]!).ArpcClient)(url, codec);
  onTestFinished(() => c.shutdown());
  await new Promise<void>((resolve) => {
    c.onOpen = () => resolve();
  });
  return c;
}

describe.each(['original', 'ours'])('an old page with %s', (name) => {
  test('calls by promise and by callback', async () => {
    const c = await open(name);
    expect(c.state).toBe(2);
    expect(c.url).toBe(server.url);
    expect(c.ws).toBeTruthy();
    expect(await c.call('/echo', { a: [1, 'x'] }, 5000)).toEqual({ data: { a: [1, 'x'] }, err: null });
    expect(await c.call('/echo', 'text', 5000)).toEqual({ data: 'text', err: null });
    expect(await c.call('/echo', '12')).toEqual({ data: 12, err: null });
    expect(await c.call('/nil')).toEqual({ data: '', err: null });
    const got = later<Result>();
    const p = c.call('/echo', 7, 5000, (r) => got.resolve(r));
    expect(await got.promise).toEqual({ data: 7, err: null });
    if (name === 'ours') expect(await p).toEqual({ data: 7, err: null });
  });
  test('errors are in err', async () => {
    const c = await open(name);
    expect(await c.call('/error/text', 1, 5000)).toEqual({ data: null, err: 'bad' });
    expect(await c.call('/error/value', 1, 5000)).toEqual({ data: null, err: { code: 7 } });
    expect(await c.call('/nosuch', 1, 5000)).toEqual({ data: null, err: 'method not found' });
  });
  test('notifies, and is notified', async () => {
    const c = await open(name), got = later<Ctx>();
    c.handle('/n', (ctx) => got.resolve(ctx));
    expect(() => c.handle('/n', () => {})).toThrow();
    await c.call('/notifyme', { Route: '/n', Count: 1 }, 5000);
    const ctx = await got.promise;
    expect([ctx.cli === c, ctx.method, ctx.data, ctx.head.length, ctx.head[5], ctx.body.byteLength]).toEqual([true, '/n', 0, 16, Cmd.Notify, 1]);
    expect(text(new Uint8Array(ctx.body))).toBe('0');
    expect(c.notify('/note', 'noted')).toBeUndefined();
    expect(await c.call('/noted', 1, 5000)).toEqual({ data: 'noted', err: null });
  });
  test('before the connection, after it and after shutdown', async () => {
    const own = await startServer();
    const c = new (page(scripts[name]!).ArpcClient)(own.url);
    expect(c.state).toBe(1);
    expect(await c.call('/echo', 1, 5000)).toEqual({ data: null, err: '[error reconnecting]' });
    const open = later(), close = later(), error = later();
    c.onOpen = () => open.resolve();
    await open.promise;
    c.onClose = (x) => {
      expect(x).toBe(c);
      close.resolve();
    };
    c.onError = () => error.resolve();
    const call = c.call('/wait', 1);
    expect(Object.keys(c.sessionMap)).toHaveLength(1);
    await own.kill();
    expect(await call).toEqual({ data: null, err: '[error disconnected]' });
    await close.promise;
    expect(c.state).toBe(1);
    await error.promise;
    c.shutdown();
    expect(c.state).toBe(0);
    expect(await c.call('/echo', 1, 5000)).toEqual({ data: null, err: '[client stopped]' });
    expect(c.notify('/note', 1)).toBe('[client stopped]');
  });
  test('pings', async () => {
    const peer = await Peer.start(), p = peer.accept();
    const opened = open(name, peer.url), conn = await p;
    if (name === 'ours') await conn.greet();
    const c = await opened;
    c.ping();
    expect((await conn.next()).cmd).toBe(Cmd.Ping);
    conn.send(Cmd.Ping, 0, 0, '');
    expect((await conn.next()).cmd).toBe(Cmd.Pong);
    c.keepalive(10);
    expect((await conn.next()).cmd).toBe(Cmd.Ping);
    expect((await conn.next()).cmd).toBe(Cmd.Ping);
  });
  test('a codec of its own', async () => {
    const calls: string[] = [];
    const codec = {
      Marshal: (v: unknown) => {
        calls.push('marshal');
        return utf8(JSON.stringify({ v }));
      },
      Unmarshal: (b: ArrayBuffer) => {
        expect(Object.prototype.toString.call(b)).toBe('[object ArrayBuffer]');
        return (JSON.parse(text(new Uint8Array(b))) as { v: unknown }).v;
      },
    };
    const c = await open(name, server.url, codec);
    expect(await c.call('/echo', { a: 1 }, 5000)).toEqual({ data: { a: 1 }, err: null });
    expect(calls).toEqual(['marshal']);
  });
});

describe('what the original could not do', () => {
  test('more than 256 calls, and frames that share messages', async () => {
    const c = await open('ours');
    const all = await Promise.all(Array.from({ length: 1000 }, (_, i) => c.call('/echo', i, 20_000)));
    expect(all).toEqual(Array.from({ length: 1000 }, (_, data) => ({ data, err: null })));
    expect(c.seqNum).toBe(1000);
    expect(c.sessionMap).toEqual({});
  });
  test('a timeout ends the call', async () => {
    const c = await open('ours'), got = later<Result>();
    expect(await c.call('/wait', 1, 20, (r) => got.resolve(r))).toEqual({ data: null, err: 'timeout' });
    expect(await got.promise).toEqual({ data: null, err: 'timeout' });
  });
  test('0, false, empty and emoji texts and routes come back', async () => {
    const c = await open('ours');
    for (const v of [0, false, '', '🦊']) expect(await c.call('/echo/日本語/🦊', v, 5000)).toEqual({ data: v, err: null });
    expect((await c.call('x'.repeat(128), 1, 5000)).err).toMatch(/invalid method/);
    expect(c.notify('', 1)).toMatch(/invalid method/);
    const loop: { l?: unknown } = {};
    loop.l = loop;
    expect((await c.call('/echo', loop, 5000)).err).toMatch(/cannot encode/);
  });
  test('bodies of 1 MiB', async () => {
    const c = await open('ours'), v = 'é🦊'.repeat(170_000);
    expect((await c.call('/echo', v, 20_000)).data === v).toBe(true);
  });
  test('a handler answers the server by what it returns or throws', async () => {
    const c = await open('ours');
    c.handle('/sum', (ctx) => (ctx.data as number[]).reduce((a, b) => a + b));
    c.handle('/later', async () => ({ ok: true }));
    c.handle('/none', () => {});
    c.handle('/fail', () => {
      throw new Error('no');
    });
    const callme = async (Route: string): Promise<unknown> => (await c.call('/callme', { Route, Value: [1, 2, 3] }, 5000)).data;
    expect(await callme('/sum')).toMatchObject({ Value: '6', Code: 0 });
    expect(await callme('/later')).toMatchObject({ Value: '{"ok":true}' });
    expect(await callme('/none')).toMatchObject({ Value: '', Code: 0 });
    expect(await callme('/fail')).toMatchObject({ Code: 2, Message: 'no' });
  });
  test('it comes back', async () => {
    const own = await startServer(), c = await open('ours', own.url), closed = later(), again = later();
    c.onClose = () => closed.resolve();
    c.onOpen = () => again.resolve();
    await own.kill();
    await closed.promise;
    const second = await startServer('-addr', own.addr);
    await again.promise;
    expect(await c.call('/echo', 'back', 5000)).toEqual({ data: 'back', err: null });
    await second.kill();
  });
});

describe('over HTTP', () => {
  /** A server of arpc's binary calls. */
  async function http(answer: (req: IncomingMessage, method: string, payload: string) => [status: number, body: Uint8Array]): Promise<string> {
    const s = createServer((req, res) => {
      const parts: Buffer[] = [];
      req.on('data', (b: Buffer) => parts.push(b));
      req.on('end', () => {
        const f = parseFrame(new Uint8Array(Buffer.concat(parts)), false, 0)!;
        const [status, body] = answer(req, `${f.cmd} ${text(f.method)}`, text(f.payload));
        if (status) res.writeHead(status).end(body);
      });
    });
    await new Promise<void>((resolve) => s.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => {
      s.closeAllConnections();
      s.close();
    });
    return `http://127.0.0.1:${(s.address() as AddressInfo).port}/rpc`;
  }
  const client = (httpUrl: string, httpMethod?: string): Classic => {
    const c = new (page(scripts.ours!).ArpcClient)(server.url, undefined, httpUrl, httpMethod);
    onTestFinished(() => c.shutdown());
    return c;
  };

  test('calls and notifications of a Go server', async () => {
    const own = await startServer('-http'), c = client(own.http);
    for (const v of [{ a: [1] }, 'text', 0, false, '', '🦊']) expect(await c.callHttp('/echo/日本語/🦊', v, 5000)).toEqual({ data: v, err: null });
    expect(await c.callHttp('/error/text', 1, 5000)).toEqual({ data: null, err: 'bad' });
    expect(await c.callHttp('/nosuch', 1, 5000)).toEqual({ data: null, err: 'method not found' });
    expect(await c.notifyHttp('/note', 'by HTTP')).toEqual({ data: null, err: null });
    expect(await c.callHttp('/noted', 1, 5000)).toEqual({ data: 'by HTTP', err: null });
    await own.kill();
  });
  test('calls and notifications', async () => {
    const seen: string[] = [];
    const url = await http((req, method, payload) => {
      seen.push(`${req.method} ${req.url} ${method} ${payload}`);
      if (method.startsWith('3')) return [200, new Uint8Array(0)];
      return [200, makeFrame(Cmd.Response, payload ? 0 : Flag.Error, 1, utf8('/e'), utf8(payload || 'bad'))];
    });
    const c = client(url);
    expect(await c.callHttp('/é', { a: 1 }, 5000)).toEqual({ data: { a: 1 }, err: null });
    const got = later<Result>();
    await c.call('/e', 'x', 5000, (r) => got.resolve(r), true);
    expect(await got.promise).toEqual({ data: 'x', err: null });
    expect(await c.callHttp('/e')).toEqual({ data: null, err: 'bad' });
    await c.notifyHttp('/n', 5);
    expect(seen).toEqual(['POST /rpc 1 /é {"a":1}', 'POST /rpc 1 /e x', 'POST /rpc 1 /e ', 'POST /rpc 3 /n 5']);
    expect(await client(url, 'PUT').callHttp('/e', 'x')).toEqual({ data: 'x', err: null });
    expect(seen.at(-1)).toBe('PUT /rpc 1 /e x');
  });
  test('failures', async () => {
    expect((await client(await http(() => [404, new Uint8Array(0)])).callHttp('/e')).err).toBe('HTTP status 404');
    expect((await client(await http(() => [200, new Uint8Array(3)])).callHttp('/e')).err).toBe('malformed answer');
    expect((await client(await http(() => [0, new Uint8Array(0)])).callHttp('/e', 1, 30)).err).toBe('timeout');
    expect((await client('http://127.0.0.1:1/').callHttp('/e')).err).toBeTruthy();
  });
});

// ActionClient against the real Go server.

import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest';
import WebSocket from 'ws';
import { ActionClient, ActionError, type ActionCode, type ActionOptions, type ActionPush, type ActionSocket } from '@arpc-go/arpc/action';

const Socket: new (url: string) => ActionSocket = WebSocket;
let dir: string, server: ChildProcess, url: string;

beforeAll(async () => {
  const root = join(import.meta.dirname, '..');
  dir = mkdtempSync(join(tmpdir(), 'arpc-action-'));
  const program = join(dir, 'server');
  execFileSync('go', ['build', '-race', '-o', program, './test/action-server'], { cwd: root, env: { ...process.env, GOWORK: 'off' }, stdio: 'inherit' });
  server = spawn(program, { stdio: ['pipe', 'pipe', 'inherit'] });
  const [line] = await once(createInterface({ input: server.stdout! }), 'line') as [string];
  url = `ws://${line}/`;
}, 120_000);

afterAll(async () => {
  const exited = once(server, 'exit');
  server.stdin!.end();
  const [code] = await exited as [number];
  rmSync(dir, { recursive: true });
  expect(code).toBe(0); // no data race, and a clean end
});

async function connect(options: ActionOptions = {}): Promise<ActionClient> {
  const c = await ActionClient.connect(url, { WebSocket: Socket, ...options });
  onTestFinished(async () => {
    c.close();
    await c.closed;
  });
  return c;
}

async function failure(p: Promise<unknown> | (() => unknown), code: ActionCode): Promise<void> {
  const e = await (async () => (typeof p === 'function' ? p() : p))().then(() => undefined, (e: unknown) => e);
  expect(e).toBeInstanceOf(ActionError);
  expect((e as ActionError).code).toBe(code);
}

test('values come back', async () => {
  const c = await connect();
  for (const v of [null, 1, 'text 🦊', { foo: 'bar', list: [1, 2, { deep: true }] }, 'x'.repeat(60_000)]) expect(await c.call(1, v)).toEqual(v);
  expect(await c.call(1)).toBe(null);
});

test('replies find their calls, whatever their order', async () => {
  const c = await connect();
  const slow = c.call(3);
  const all = await Promise.all(Array.from({ length: 500 }, (_, i) => c.call<{ i: number }>(1, { i })));
  expect(all.map((v) => v.i)).toEqual(all.map((_, i) => i));
  expect(await c.call(4)).toBe(null);
  expect(await slow).toBe('slow');
});

test('pushes come in order, before the reply that follows them', async () => {
  const pushes: ActionPush[] = [];
  const c = await connect({ onPush: (p) => pushes.push(p) });
  expect(await c.call(-5)).toBe('pushed');
  expect(pushes).toEqual([0, 1, 2].map((i) => ({ action: 101, seq: 0 - i, value: { i } })));
});

test('replies to send are pushes', async () => {
  let got!: (p: ActionPush) => void;
  const push = new Promise<ActionPush>((resolve) => (got = resolve));
  const c = await connect({ onPush: got });
  c.send(1, 'hello');
  expect(await push).toMatchObject({ action: 1, value: 'hello' });
});

test('errors say what went wrong', async () => {
  const c = await connect();
  await failure(c.call(2, {}, { timeout: 50 }), 'deadline_exceeded');
  const stop = new AbortController();
  const call = c.call(2, {}, { signal: stop.signal });
  stop.abort();
  await failure(call, 'canceled');
  await failure(c.call(1, 1, { signal: stop.signal }), 'canceled');
  await failure(c.call(1, 1n), 'invalid_argument');
  await failure(c.call(1.5), 'invalid_argument');
  await failure(c.call(1, 'x'.repeat(70_000)), 'invalid_argument');
  await failure(() => c.send(70_000), 'invalid_argument');
  await failure((await connect({ maxBuffered: -1 })).call(1), 'resource_exhausted');
  expect(await c.call(1, 'still there')).toBe('still there');
  const waiting = c.call(2);
  c.close();
  await failure(waiting, 'unavailable');
  await failure(c.call(1), 'unavailable');
});

test('the server closes', async () => {
  const c = await connect();
  await failure(c.call(6), 'unavailable');
  expect((await c.closed).code).toBe('unavailable');
});

test('nobody listens', async () => {
  await failure(ActionClient.connect('ws://127.0.0.1:1/', { WebSocket: Socket }), 'unavailable');
});

test('another codec', async () => {
  const c = await connect({
    codec: { encode: (v) => new TextEncoder().encode(`"${String(v)}"`), decode: (b) => `${b.length} bytes` },
  });
  expect(await c.call(1, 'abc')).toBe('5 bytes');
});

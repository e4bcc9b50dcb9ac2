// Follows a trace from a page to the server, back to the page and to the server again, in Chromium. What the page does is
// taken from docs/observability.md; the server's spans are those of its in-memory exporter.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { close, launch, open, root } from './harness.mjs';

const dir = mkdtempSync(join(tmpdir(), 'arpc-otel-'));
let server, lines, web, tab;
process.on('exit', () => {
  server?.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});

/** The module in the documentation that begins with a comment of its name. */
const documented = readFileSync(join(root, 'docs/observability.md'), 'utf8').match(/```js\n(\/\/ trace\.mjs[^]*?)```/)[1];

before(async () => {
  // The server is of a module of its own, as OpenTelemetry is.
  const program = join(dir, 'pageserver');
  execFileSync('go', ['build', '-o', program, './internal/pageserver'], {
    cwd: join(root, 'extension/otel'), env: { ...process.env, GOWORK: 'off' }, stdio: 'inherit',
  });
  server = spawn(program, { stdio: ['pipe', 'pipe', 'inherit'] });
  lines = createInterface({ input: server.stdout })[Symbol.asyncIterator]();
  const { value: addr } = await lines.next();
  const files = { '/arpc.mjs': readFileSync(join(root, 'extension/jsclient/dist/arpc.mjs')), '/trace.mjs': documented };
  web = createServer((req, res) => {
    res.setHeader('Content-Type', req.url in files ? 'text/javascript' : 'text/html');
    res.end(files[req.url] ?? '<!doctype html><link rel="icon" href="data:,">');
  }).listen(0, '127.0.0.1');
  await once(web, 'listening');
  await launch();
  tab = await open(`http://127.0.0.1:${web.address().port}/`);
  await tab.page.evaluate(async (url) => {
    Object.assign(globalThis, await import('/arpc.mjs'), await import('/trace.mjs'));
    globalThis.client = new Client(url, { timeout: 20_000 });
  }, `ws://${addr}/`);
}, { timeout: 180_000 });

after(async () => {
  await tab?.close();
  web?.closeAllConnections();
  web?.close();
  await close();
  if (server) {
    const exited = once(server, 'exit');
    server.stdin.end();
    await exited;
  }
});

/** The server's spans, once n more have ended. */
async function spans(n) {
  server.stdin.write(`${n}\n`);
  return JSON.parse((await lines.next()).value);
}

test('a trace that a page begins goes to the server, to the page and to the server', async () => {
  const page = await tab.page.evaluate(async () => {
    const said = {};
    client.handle('/confirm', async (what, ctx) => {
      said.received = ctx.metadata.traceparent;
      said.second = child(said.received);
      return `${what} for ${await client.call('/price', what, { metadata: { traceparent: said.second } })}`;
    });
    said.first = child();
    said.answer = await client.call('/order', 'tea', { metadata: { traceparent: said.first } });
    return said;
  });
  assert.equal(page.answer, 'tea for 3');

  const all = await spans(3);
  assert.equal(all.length, 3);
  const [order, confirm, price] = ['server /order', 'client /confirm', 'server /price'].map((want) => {
    const found = all.filter((s) => `${s.Kind} ${s.Name}` === want);
    assert.equal(found.length, 1, want);
    return found[0];
  });
  const [, trace, first] = page.first.split('-'), [, received, parent] = page.received.split('-'), [, third, second] = page.second.split('-');
  assert.match(page.first, /^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
  assert.deepEqual([order.Trace, confirm.Trace, received, third, price.Trace], Array(5).fill(trace));
  assert.deepEqual([order.Parent, confirm.Parent, parent, price.Parent], [first, order.ID, confirm.ID, second]);
  assert.equal(new Set([first, order.ID, confirm.ID, second, price.ID]).size, 5);
  assert.deepEqual(tab.faults, []);
});

test('what the page does not sample, the server does not record', async () => {
  const answer = await tab.page.evaluate(() => client.call('/order', 'tea', { metadata: { traceparent: child().slice(0, -2) + '00' } }));
  assert.equal(answer, 'tea for 3');
  assert.equal((await spans(0)).length, 3);
});

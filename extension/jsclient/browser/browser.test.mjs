// Drives real Chromium: the webchat example, and a page against the Go server of the TypeScript client's tests.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { build, close, end, launch, open, root, start } from './harness.mjs';

const here = import.meta.dirname;

before(async () => {
  build('webchat', './examples/webchat');
  build('server', './extension/jsclient/test/server');
  await launch();
}, { timeout: 180_000 });

after(close);

describe('webchat', () => {
  let server, url;
  before(async () => {
    [server, url] = await start('webchat', 'webchat is at ');
  });
  after(() => end(server));

  /** Opens the chat and goes in, by keyboard alone. */
  async function enter(name, room, width, height) {
    const tab = await open(url, width, height);
    await tab.page.waitForSelector('#name:focus');
    await tab.page.keyboard.type(name);
    await tab.page.keyboard.press('Tab');
    await tab.page.keyboard.down('Control');
    await tab.page.keyboard.press('a');
    await tab.page.keyboard.up('Control');
    await tab.page.keyboard.type(room);
    await tab.page.keyboard.press('Enter');
    await online(tab);
    await tab.page.waitForSelector('#text:focus');
    await tab.page.waitForFunction((r) => document.getElementById('title').textContent === '# ' + r, {}, room);
    return tab;
  }
  const online = ({ page }) => page.waitForFunction(() => document.getElementById('state').textContent === 'Online');
  const say = async ({ page }, text) => {
    await page.focus('#text');
    await page.keyboard.type(text);
    await page.keyboard.press('Enter');
  };
  const texts = ({ page }) => page.$$eval('#messages .text', (all) => all.map((e) => e.textContent));
  const sees = ({ page }, ...want) => page.waitForFunction(
    (want) => JSON.stringify([...document.querySelectorAll('#messages .text')].map((e) => e.textContent)) === want, {}, JSON.stringify(want));
  const here = ({ page }, ...want) => page.waitForFunction(
    (want) => JSON.stringify([...document.querySelectorAll('#members li')].map((e) => e.title)) === want, {}, JSON.stringify(want));

  test('two pages chat', async () => {
    const ann = await enter('Ann', 'tea'), bob = await enter('Bob 🦊', 'tea', 390, 844);
    await here(ann, 'Ann', 'Bob 🦊');
    await here(bob, 'Ann', 'Bob 🦊');
    await say(ann, 'hello <img src=x>');
    await sees(bob, 'hello <img src=x>');
    assert.equal((await bob.page.$$('#log img')).length, 0);
    await say(bob, 'hi 日本語');
    await sees(ann, 'hello <img src=x>', 'hi 日本語');
    assert.equal(await ann.page.$eval('#messages .mine .text', (e) => e.textContent), 'hello <img src=x>');

    // A third one gets what was said before, under a name of its own.
    const other = await enter('Ann', 'tea');
    await sees(other, 'hello <img src=x>', 'hi 日本語');
    await here(ann, 'Ann', 'Ann 2', 'Bob 🦊');
    await other.close();
    await here(ann, 'Ann', 'Bob 🦊');

    // Another room, and back by the button of the room.
    await bob.page.type('#newroom', 'coffee & cake');
    await bob.page.keyboard.press('Enter');
    await here(ann, 'Ann');
    await here(bob, 'Bob 🦊');
    await sees(bob);
    await ann.page.waitForSelector('[data-room="coffee & cake"]');
    await say(bob, 'alone');
    await sees(bob, 'alone');
    await bob.page.focus('[data-room="tea"]');
    await bob.page.keyboard.press('Enter');
    await sees(bob, 'hello <img src=x>', 'hi 日本語');
    await here(ann, 'Ann', 'Bob 🦊');

    // Nothing is wider than the phone, and all that can be operated has a name.
    const [wide, nameless] = await bob.page.evaluate(() => [
      document.documentElement.scrollWidth - innerWidth,
      [...document.querySelectorAll('#chat :is(button, input, textarea)')].filter((e) => !(e.textContent.trim() || e.ariaLabel)).length,
    ]);
    assert.deepEqual([wide, nameless], [0, 0]);
    assert.deepEqual([...ann.faults, ...bob.faults], []);
    await Promise.all([ann.close(), bob.close()]);
  });

  test('the pages recover when the server is killed and restarted', async () => {
    const ann = await enter('Ann', 'design'), bob = await enter('Bob', 'design');
    await say(ann, 'before');
    await sees(bob, 'before');
    await end(server);
    for (const { page } of [ann, bob]) await page.waitForFunction(() => document.getElementById('state').textContent === 'Reconnecting…');

    // What cannot be sent stays in its box.
    await say(ann, 'lost?');
    await ann.page.waitForFunction(() => document.getElementById('problem').textContent && document.getElementById('text').value === 'lost?');

    [server] = await start('webchat', 'webchat is at ', '-addr', new URL(url).host);
    for (const tab of [ann, bob]) {
      await online(tab);
      await here(tab, 'Ann', 'Bob');
    }
    await ann.page.focus('#text');
    await ann.page.keyboard.press('Enter');
    await sees(bob, 'lost?');
    await say(bob, 'after');
    await sees(ann, 'lost?', 'after');
    await Promise.all([ann.close(), bob.close()]);
  });

  test('screenshots', { skip: !process.env.UPDATE_SCREENSHOTS && 'made with UPDATE_SCREENSHOTS=1' }, async () => {
    const to = join(root, 'docs/images');
    mkdirSync(to, { recursive: true });
    const mia = await enter('Mia', 'release'), leo = await enter('Leo', 'release'), ada = await enter('Ada', 'release', 390, 844);
    const kim = await enter('Kim', 'lobby'), sam = await enter('Sam', 'lunch');
    for (const [who, text] of [
      [mia, 'Morning! The build is green on all systems.'],
      [leo, 'Great. I tried the restart: killed the server while typing, and every tab came back by itself.'],
      [leo, 'Nothing to reload.'],
      [ada, 'Same on the phone 🎉'],
      [mia, 'Then let us tag it. Ada, would you write the notes?'],
      [ada, 'On it. Short version: the page calls the server, the server calls the page, over one WebSocket.'],
    ]) {
      const n = (await texts(ada)).length;
      await say(who, text);
      await ada.page.waitForFunction((n) => document.querySelectorAll('#messages .text').length > n, {}, n);
    }
    await here(ada, 'Ada', 'Leo', 'Mia');
    await ada.page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
    await ada.page.screenshot({ path: join(to, 'webchat-390.png') });
    await mia.page.bringToFront();
    await mia.page.screenshot({ path: join(to, 'webchat-1280.png') });
    await Promise.all([mia, leo, ada, kim, sam].map((tab) => tab.close()));
  });
});

describe('a page', () => {
  let server, web, tab;
  before(async () => {
    let addr;
    [server, addr] = await start('server', '');
    web = createServer((req, res) => {
      const script = req.url === '/arpc.mjs';
      res.setHeader('Content-Type', script ? 'text/javascript' : 'text/html');
      res.end(script ? readFileSync(join(here, '../dist/arpc.mjs')) : '<!doctype html><link rel="icon" href="data:,">');
    }).listen(0, '127.0.0.1');
    await once(web, 'listening');
    tab = await open(`http://127.0.0.1:${web.address().port}/`);
    await tab.page.evaluate(async (url) => {
      Object.assign(globalThis, await import('/arpc.mjs'));
      globalThis.traffic = { sent: 0, messages: 0, bytes: 0 };
      class Counted extends WebSocket {
        constructor(...args) {
          super(...args);
          this.addEventListener('message', (e) => {
            traffic.messages++;
            traffic.bytes += e.data.byteLength;
          });
        }

        send(data) {
          traffic.sent++;
          super.send(data);
        }
      }
      globalThis.client = new Client(url, { WebSocket: Counted, timeout: 20_000 });
    }, `ws://${addr}/ws`);
  });
  after(async () => {
    await tab?.close();
    web.closeAllConnections();
    web.close();
    await end(server);
  });
  const inPage = (f, ...args) => tab.page.evaluate(f, ...args);

  test('answers the server', async () => {
    const got = await inPage(async () => {
      const asked = [];
      const off = client.handle('/ask', (value) => {
        asked.push(value);
        return value;
      }, { as: 'json' });
      const answers = [];
      for (const Value of [0, false, '', null, 'ä🦊', { a: [1] }]) answers.push((await client.call('/callme', { Route: '/ask', Value })).Value);
      off();
      client.handle('/refuse', () => {
        throw new ArpcError(Code.NotFound, 'not here');
      });
      const refusal = await client.call('/callme', { Route: '/refuse', Value: 1 });
      return { asked, answers, refusal: [refusal.Code, refusal.Message, refusal.Remote] };
    });
    assert.deepEqual(got.asked, [0, false, '', null, 'ä🦊', { a: [1] }]);
    assert.deepEqual(got.answers.map((a) => JSON.parse(a)), got.asked);
    assert.deepEqual(got.refusal, [5, 'not here', true]);
  });

  test('values come back equal', async () => {
    const got = await inPage(async () => {
      const out = {};
      out.json = [];
      for (const v of [0, false, '', null, 'x', [], { a: null }]) out.json.push(await client.call('/json', v, { as: 'json' }));
      out.plain = [];
      for (const v of [0, false, '', null]) out.plain.push(await client.call('/echo', v));
      out.route = await client.call('/echo/日本語/🦊', 'ä🦊', { as: 'text' });
      const big = new Uint8Array(1 << 20);
      for (let i = 0; i < big.length; i += 65536) crypto.getRandomValues(big.subarray(i, i + 65536));
      const back = await client.call('/echo', big, { as: 'bytes' });
      out.big = back.length === big.length && back.every((b, i) => b === big[i]);
      const text = '🦊日本'.repeat(100_000);
      out.text = (await client.call('/text', text, { as: 'json' })) === text;
      return out;
    });
    assert.deepEqual(got, {
      json: [0, false, '', null, 'x', [], { a: null }], plain: [0, false, '', null], route: 'ä🦊', big: true, text: true,
    });
  });

  test('a thousand calls at once, whose frames share messages', async () => {
    const got = await inPage(async () => {
      const { sent, messages } = traffic;
      const answers = await Promise.all(Array.from({ length: 1000 }, (_, i) => client.call('/echo', { i })));
      return { wrong: answers.filter((a, i) => a.i !== i).length, sent: traffic.sent - sent, messages: traffic.messages - messages };
    });
    assert.equal(got.wrong, 0);
    // What is sent in one turn of the page is sent together, and answered together: a few messages in each direction.
    assert.ok(got.sent < 100 && got.messages < 500, `${got.sent} and ${got.messages} messages for 1000 frames`);
  });

  test('a thousand notifications come in order', async () => {
    const disordered = await inPage(async () => {
      const notes = [];
      const all = new Promise((resolve) => client.handle('/numbered', (n) => notes.push(n) === 1000 && resolve()));
      await client.call('/notifyme', { Route: '/numbered', Count: 1000 });
      await all;
      return notes.filter((n, i) => n !== i).length;
    });
    assert.equal(disordered, 0);
  });

  test('AbortSignal cancels the handler', async () => {
    const got = await inPage(async () => {
      const stop = new AbortController(), waiting = new Promise((resolve) => client.handle('/waiting', resolve));
      const call = client.call('/wait', undefined, { signal: stop.signal }).then(() => 'answer', (e) => [e instanceof ArpcError, e.code]);
      await waiting;
      stop.abort();
      return [await call, await client.call('/cause', undefined, { as: 'text' })];
    });
    assert.deepEqual(got[0], [true, 1]);
    assert.match(got[1], /cancel/i);
  });

  test('a stream to a slow page', async () => {
    const got = await inPage(async () => {
      const count = 256, size = 32 << 10, before = traffic.bytes;
      const s = await client.stream('/s/source', { as: 'text' });
      await s.send(JSON.stringify({ Count: count, Size: size }));
      const head = (m) => [parseInt(m), m.length];
      const heads = [head((await s.next()).value)];
      // Whatever else the server would send comes before these answers, or in the time between them.
      for (let i = 0; i < 10; i++) {
        await client.call('/echo', i);
        await new Promise((r) => setTimeout(r, 20));
      }
      const early = traffic.bytes - before;
      for await (const m of s) {
        heads.push(head(m));
        if (heads.length % 16 === 0) await new Promise((r) => setTimeout(r, 5));
      }
      return { early, count: heads.length, wrong: heads.filter(([n, length], i) => n !== i || length !== size).length };
    });
    assert.deepEqual([got.count, got.wrong], [256, 0]);
    assert.ok(got.early < 1 << 20, `${got.early} bytes came before they were wanted`);
  });

  test('a stream to a slow server', async () => {
    const got = await inPage(async () => {
      const count = 256, message = new Uint8Array(32 << 10);
      const s = await client.stream('/s/slow', { as: 'text' });
      let sent = 0;
      const sending = (async () => {
        for (; sent < count; sent++) await s.send(message);
        await s.closeSend();
      })();
      for (let i = 0; i < 10; i++) {
        await client.call('/echo', i);
        await new Promise((r) => setTimeout(r, 20));
      }
      const early = sent, refused = !s.trySend(message);
      await client.call('/s/take', count + 1); // the last is the end
      await sending;
      return { early, refused, sum: (await s.next()).value };
    });
    assert.ok(got.early > 0 && got.early < 64, `${got.early} messages were sent before they were wanted`);
    assert.equal(got.refused, true);
    assert.equal(got.sum, `256 messages, ${256 * (32 << 10)} bytes`);
  });

  test('has no faults', () => assert.deepEqual(tab.faults, []));
});

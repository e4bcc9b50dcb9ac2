// The pages of the published arpc's examples, unchanged, in real Chromium, against a server of this module: once with the script that
// they came with, once with ours in its place. They are read from the module cache, and not kept.
//
// The published script cannot do these, so they are tested with ours only:
//   - more than 256 frames, as it reads the numbers of later answers wrong
//   - a timeout, which is a ReferenceError in its timer and leaves the call waiting
//   - answering calls of the server: its handlers run, and the server waits in vain
//   - callHttp, which returns nothing so that the page's then() fails, and notifyHttp
//   - 0, false and '' as values, which it sends as nothing, and routes that are not ASCII
//   - several frames in one message; the server sends it one in each, as it does to all peers of version 1
// It also connects again without any wait, so the test ends its connections and not its server.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { build, close, end, launch, open, root, start } from './harness.mjs';

let module, addr;

before(async () => {
  const env = { ...process.env, GOFLAGS: '-mod=mod', GO111MODULE: 'on', GOWORK: 'off' };
  module = JSON.parse(execFileSync('go', ['mod', 'download', '-json', 'github.com/lesismal/arpc@v1.2.16'], { cwd: '/', encoding: 'utf8', env })).Dir;
  build('oldserver', './extension/jsclient/browser/oldserver');
  // The address is in the pages, so the browser is told that it is another one.
  const [free, at] = await start('oldserver', '');
  await end(free);
  addr = at;
  await launch(`--host-resolver-rules=MAP localhost:8888 ${addr}`);
}, { timeout: 180_000 });

after(close);

for (const [name, ours] of [['the published script', false], ['our script', true]]) describe(name, () => {
  let server, lines;
  before(async () => {
    const script = ours ? join(root, 'extension/jsclient/dist/arpc.js') : join(module, 'extension/jsclient/arpc.js');
    [server, , lines] = await start('oldserver', '', '-addr', addr, '-module', module, '-script', script);
  });
  after(() => end(server));

  const visit = (page) => open(`http://localhost:8888/${page}/`);
  const tell = (command) => server.stdin.write(command + '\n');
  /** Waits for a notification that the server gets, and returns those before it. */
  const got = async (want) => {
    const before = [];
    for (let l; (l = (await lines.next()).value) !== want;) {
      assert.ok(l !== undefined, 'the server has ended');
      before.push(l);
    }
    return before;
  };
  const shows = ({ page }, selector, text) => page.waitForFunction(
    (selector, text) => document.querySelector(selector).textContent === text, {}, selector, text);
  /** Waits for a line in the log of a page, for the nth time. */
  const logs = ({ page }, line, n = 1) => page.waitForFunction(
    (line, n) => [...document.querySelectorAll('#log div')].filter((e) => e.textContent === line).length === n, {}, line, n);
  const log = ({ page }) => page.$$eval('#log div', (all) => all.map((e) => e.textContent));
  const say = async ({ page }, text) => {
    await page.focus('#msgInput');
    await page.keyboard.type(text);
    await page.keyboard.press('Enter');
  };

  test('hello.html calls, notifies and is notified', async () => {
    const tab = await visit('hello');
    await shows(tab, '#notify', 'Welcome!');
    await shows(tab, '#response', "[/call/echo] reply: 'call 1', error: 'null'");
    assert.deepEqual(await got('/notify notify 1'), []);
    assert.deepEqual(tab.faults, []);
    await tab.close();
  });

  test('webchat', async () => {
    const enter = async () => {
      const tab = await visit('webchat');
      await tab.page.waitForFunction(() => document.querySelectorAll('#log div').length === 3);
      const first = await log(tab), id = first.join().match(/\[my id: (\d+)\]/)?.[1];
      assert.deepEqual(first.toSorted(), ['Connection connected.', `[my id: ${id}]`, `[user_${id}] enter room, welcome!~~~`]);
      return { ...tab, id };
    };
    const ann = await enter(), bob = await enter();
    await logs(ann, `[user_${bob.id}] enter room, welcome!~~~`);
    await say(ann, 'hello ä🦊 <b>');
    await logs(bob, `[user_${ann.id}]: hello ä🦊 <b>`);
    await logs(ann, '[myself]: hello ä🦊 <b>');
    await say(bob, '12');
    await logs(ann, `[user_${bob.id}]: 12`);

    // The connections are lost, and both come back as new users.
    tell('drop');
    for (const tab of [ann, bob]) {
      await logs(tab, 'Connection closed.');
      await logs(tab, 'Connection connected.', 2);
      await tab.page.waitForFunction(() => [...document.querySelectorAll('#log div')].filter((e) => e.textContent.startsWith('[my id: ')).length === 2);
      tab.id = (await log(tab)).findLast((l) => l.startsWith('[my id: ')).slice(8, -1);
    }
    await say(bob, 'again');
    await logs(ann, `[user_${bob.id}]: again`);

    await bob.close();
    await logs(ann, `[user_${bob.id}] leave room.`);
    tell('shutdown');
    await logs(ann, 'server shutdown');
    await logs(ann, 'Connection closed.', 2);
    await (await enter()).close();
    assert.equal((await log(ann)).at(-1), 'Connection closed.');
    assert.deepEqual([...ann.faults, ...bob.faults], []);
    await ann.close();
  });

  test('onOpen is called before handlers', async () => {
    const tab = await visit('webchat');
    await tab.page.waitForFunction(() => document.querySelectorAll('#log div').length === 3);
    assert.equal((await log(tab))[0], 'Connection connected.');
    await tab.close();
  });

  test('what the page httprpc does', async () => {
    const tab = await visit('httprpc');
    const ws = "[call /ws/echo] response from server: '/ws/echo data', error: 'null'";
    await logs(tab, ws);
    if (ours) {
      await logs(tab, "[call /http/echo] response from server: '/http/echo data', error: 'null'");
      await say(tab, 'first ä');
      await got('/ws/notify first ä');
      await say(tab, 'second 🦊');
      await got('/http/notify second 🦊');
      assert.deepEqual(tab.faults, []);
    } else {
      assert.match(tab.faults.join(), /TypeError.*then/); // the rest of the page does not run
    }
    await tab.close();
  });

  describe('in the page', () => {
    let tab;
    before(async () => {
      tab = await visit('hello');
      await shows(tab, '#notify', 'Welcome!');
    });
    after(() => tab?.close());
    // The client of hello.html is a global.
    const inPage = (f, ...args) => tab.page.evaluate(f, ...args);
    const ok = (data) => ({ data, err: null });

    test('calls by promise and by callback', async () => {
      const all = await inPage(async () => {
        const out = [client.url, client.state];
        for (const v of ['ä🦊', { a: [1, 'x'] }, '12', true]) out.push(await client.call('/ws/echo', v, 5000));
        out.push(await new Promise((resolve) => void client.call('/ws/echo', 7, 5000, resolve)));
        const big = 'é🦊ab'.repeat(1 << 17), back = await client.call('/ws/echo', big, 20_000);
        out.push(back.data === big && back.err === null);
        return out;
      });
      assert.deepEqual(all, ['ws://localhost:8888/ws', 2, ok('ä🦊'), ok({ a: [1, 'x'] }), ok(12), ok(true), ok(7), true]);
    });

    test('errors are in err', async () => {
      const all = await inPage(async () => {
        const out = [];
        for (const m of ['/error/text', '/error/value', '/nosuch']) out.push((await client.call(m, 1, 5000)).err);
        return out;
      });
      assert.deepEqual(all, ['bad', { code: 7 }, 'method not found']);
    });

    test('a hundred calls at once, and a hundred notifications', async () => {
      const [answers, notes] = await inPage(async () => {
        const notes = [];
        const all = new Promise((resolve) => client.handle('/n', (ctx) => notes.push(ctx.data) === 100 && resolve()));
        const calls = Array.from({ length: 100 }, (_, i) => client.call('/ws/echo', { i }, 5000));
        const [, done, ...answers] = await Promise.all([all, client.call('/notifyme', 100, 5000), ...calls]);
        return [[done, ...answers], notes];
      });
      assert.deepEqual(answers, [ok('done'), ...Array.from({ length: 100 }, (_, i) => ok({ i }))]);
      assert.deepEqual(notes, Array.from({ length: 100 }, (_, i) => i));
    });

    test('pings and keepalive', async () => {
      const answer = await inPage(async () => {
        client.ping();
        client.keepalive(10);
        const sent = new Promise((resolve) => {
          const { send } = client.ws;
          let pings = 0;
          client.ws.send = function (frame) {
            send.call(this, frame);
            if (new Uint8Array(frame.buffer ?? frame)[5] === 4 && ++pings === 2) {
              delete client.ws.send;
              resolve();
            }
          };
        });
        await sent;
        return client.call('/ws/echo', 'alive', 5000);
      });
      assert.deepEqual(answer, ok('alive'));
      await tab.close();
      tab = await visit('hello'); // as the pings count as frames of the published script
      await shows(tab, '#notify', 'Welcome!');
    });

    test('the server calls the page', async () => {
      const [answer, asked] = await inPage(async () => {
        const asked = [];
        client.handle('/ask', (ctx) => {
          asked.push(ctx.data);
          return ctx.data + '!';
        });
        return [await client.call('/askme', 'hey', 20_000), asked];
      });
      assert.deepEqual(asked, ['hey']);
      if (ours) assert.deepEqual(answer, ok('HEY!'));
      else assert.ok(answer.err && !answer.data, 'the published script cannot answer');
    });

    if (ours) test('what the published script could not do', async () => {
      const got = await inPage(async () => {
        const calls = await Promise.all(Array.from({ length: 1000 }, (_, i) => client.call('/ws/echo', { i }, 20_000)));
        const values = [];
        for (const v of [0, false, '']) values.push((await client.call('/ws/echo', v, 5000)).data);
        return {
          wrong: calls.filter(({ data, err }, i) => err || data.i !== i).length,
          values,
          timeout: await client.call('/wait', 1, 20),
          http: await new ArpcClient(client.url, undefined, 'http://localhost:8888/http/rpc').callHttp('/http/echo', { a: 1 }, 5000),
        };
      });
      assert.deepEqual(got, { wrong: 0, values: [0, false, ''], timeout: { data: null, err: 'timeout' }, http: ok({ a: 1 }) });
    });

    test('has no faults', () => assert.deepEqual(tab.faults, []));
  });
});

// Drives the live-board example in real Chromium, and cuts its network in every way: nothing may be missing that the page does not
// say is missing.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { build, close, end, launch, open as openTab, root, start } from './harness.mjs';

before(async () => {
  build('live-board', '.', 'examples/live-board');
  await launch();
}, { timeout: 180_000 });
after(close);

/** Starts a server; returns it with its address and, if it has one, that of its nats-server. */
async function serve(...args) {
  const [process, url, lines] = await start('live-board', 'live-board is at ', ...args);
  const nats = args.includes('embedded') ? (await lines.next()).value.replace(/.* -nats /, '') : '';
  return { process, url, host: new URL(url).host, nats };
}

/** Writes notes, not by the page. */
async function post(server, ...texts) {
  for (const text of texts) {
    const r = await fetch(server.url + '/notes?by=elsewhere', { method: 'POST', body: text });
    assert.equal(r.status, 200, await r.text());
  }
}

async function open(server, name, width = 1280, height = 800) {
  const tab = await openTab(server.url, width, height), { page } = tab;
  const t = {
    ...tab,
    state: (want) => page.waitForFunction((want) => document.getElementById('state').textContent === want, {}, want),
    /** Waits until exactly these notes are there, in this order. */
    sees: async (...want) => {
      const got = () => page.$$eval('#notes .text', (all) => all.map((e) => e.textContent));
      await page.waitForFunction((want) => JSON.stringify([...document.querySelectorAll('#notes .text')].map((e) => e.textContent)) === want, {}, JSON.stringify(want))
        .catch(async () => assert.deepEqual(await got(), want));
    },
    here: (...want) => page.waitForFunction(
      (want) => JSON.stringify([...document.querySelectorAll('#members li')].map((e) => e.textContent)) === want, {}, JSON.stringify(want)),
    /** Waits for what the page says about the last reconnect, and how many notes it brought. */
    reconnected: async (recovered, notes) => {
      const got = () => page.$eval('#recovery', (e) => [e.dataset.recovered, e.dataset.notes]);
      await page.waitForFunction((want) => {
        const { recovered, notes } = document.getElementById('recovery').dataset;
        return JSON.stringify([recovered, notes]) === want;
      }, {}, JSON.stringify([recovered, String(notes)])).catch(async () => assert.deepEqual(await got(), [recovered, String(notes)]));
    },
    say: async (text) => {
      await page.focus('#text');
      await page.keyboard.type(text);
      await page.keyboard.press('Enter');
    },
    cut: () => page.click('#cut'),
    missed: () => page.$$eval('#notes .missed .text', (all) => all.map((e) => e.textContent)),
  };
  await t.state('Online');
  await page.click('#name', { clickCount: 3 });
  await page.keyboard.type(name);
  await page.keyboard.press('Tab');
  await page.waitForFunction((name) => [...document.querySelectorAll('#members li')].some((e) => e.textContent === name + ' (you)'), {}, name);
  return t;
}

/** What a page reports when its server goes away is no fault. */
const faults = ({ faults }) => faults.filter((f) => !/WebSocket connection to .* failed/.test(f));

describe('one server', () => {
  let server;
  before(async () => {
    server = await serve('-addr', '127.0.0.1:0');
  });
  after(() => end(server.process));

  test('a cut connection: everything is recovered', async () => {
    const ann = await open(server, 'Ann'), bob = await open(server, 'Bob', 390, 844);
    await ann.here('Ann (you)', 'Bob');
    await bob.here('Ann', 'Bob (you)');
    await ann.say('one <b>');
    await bob.sees('one <b>');
    await bob.say('two');
    await ann.sees('one <b>', 'two');
    assert.equal((await ann.page.$$('#notes b b')).length, 0);

    await ann.cut();
    await ann.state('Cut');
    await bob.here('Bob (you)');
    await bob.say('three');
    await bob.sees('one <b>', 'two', 'three');
    await post(server, 'four', 'five');
    await bob.sees('one <b>', 'two', 'three', 'four', 'five');
    await ann.say('six'); // waits, and is put up once
    await ann.page.waitForSelector('#outbox li');
    await ann.sees('one <b>', 'two');
    await ann.cut();
    await ann.state('Online');
    const all = ['one <b>', 'two', 'three', 'four', 'five', 'six'];
    await ann.sees(...all);
    await bob.sees(...all);
    await ann.page.waitForFunction(() => document.getElementById('recovery').dataset.recovered === 'yes');
    assert.deepEqual((await ann.missed()).slice(0, 3), ['three', 'four', 'five']);
    await bob.here('Ann', 'Bob (you)');
    await ann.page.waitForFunction(() => !document.querySelector('#outbox li'));

    // Again and again, while notes come.
    for (let i = 0; i < 3; i++) {
      await ann.cut();
      await ann.state('Cut');
      await post(server, `round ${i}`);
      all.push(`round ${i}`);
      await ann.cut();
      await ann.state('Online');
      await post(server, `after ${i}`);
      all.push(`after ${i}`);
      await ann.sees(...all);
    }
    await ann.page.waitForFunction(() => document.getElementById('recovery').dataset.recovered === 'yes');

    // A page that is opened now sees the same; nothing is wider than the phone, all that can be operated has a name and is large enough.
    const eve = await open(server, 'Eve');
    await eve.sees(...all);
    const [wide, nameless, small] = await bob.page.evaluate(() => {
      const operated = [...document.querySelectorAll('button, input')];
      return [
        document.documentElement.scrollWidth - innerWidth, operated.filter((e) => !(e.textContent.trim() || e.ariaLabel)).length,
        operated.filter((e) => e.getBoundingClientRect().height < 44).length,
      ];
    });
    assert.deepEqual([wide, nameless, small], [0, 0, 0]);
    for (const tab of [ann, bob, eve]) {
      assert.deepEqual(faults(tab), []);
      await tab.close();
    }
  });

  test('a killed server has forgotten the board, and the page says so', async () => {
    const mine = await serve('-addr', '127.0.0.1:0'), ann = await open(mine, 'Ann');
    await post(mine, 'old');
    await ann.sees('old');
    await end(mine.process);
    await ann.state('Reconnecting…');
    await ann.say('mine');
    const again = await serve('-addr', mine.host);
    await post(again, 'new'); // it may come before the page does, or after
    await ann.state('Online');
    await ann.page.waitForFunction(() => document.getElementById('recovery').dataset.recovered === 'no');
    // Nothing of the old board is left, and what was not sent is there, once.
    await ann.page.waitForFunction(() => document.querySelectorAll('#notes .text').length === 2);
    assert.deepEqual((await ann.page.$$eval('#notes .text', (all) => all.map((e) => e.textContent))).sort(), ['mine', 'new']);
    await ann.cut();
    await ann.state('Cut');
    await post(again, 'more');
    await ann.cut();
    await ann.reconnected('yes', 1);
    assert.deepEqual(faults(ann), []);

    const exited = once(again.process, 'exit');
    again.process.kill('SIGINT');
    assert.deepEqual(await exited, [0, null]);
    await ann.state('Reconnecting…');
    await ann.close();
  });
});

describe('two servers on NATS', () => {
  let a, b;
  before(async () => {
    b = await serve('-addr', '127.0.0.1:0', '-nats', 'embedded', '-nats-addr', '127.0.0.1:0');
    a = await serve('-addr', '127.0.0.1:0', '-nats', b.nats);
  });
  after(async () => {
    await end(a.process);
    const exited = once(b.process, 'exit');
    b.process.kill('SIGINT'); // its files go with it
    assert.deepEqual(await exited, [0, null]);
  });

  test('a killed server: what was written by the other is recovered', async () => {
    const ann = await open(a, 'Ann'), bob = await open(b, 'Bob');
    await ann.here('Ann (you)', 'Bob');
    await bob.say('by b');
    await ann.sees('by b');
    await ann.say('by a');
    await bob.sees('by b', 'by a');

    await end(a.process);
    await ann.state('Reconnecting…');
    await bob.say('while a is dead');
    await bob.sees('by b', 'by a', 'while a is dead');
    await post(b, 'two', 'three');
    await bob.sees('by b', 'by a', 'while a is dead', 'two', 'three');
    await bob.here('Bob (you)'); // a says no longer that it is there
    a = await serve('-addr', a.host, '-nats', b.nats);
    await ann.state('Online');
    await ann.reconnected('yes', 3);
    await ann.sees('by b', 'by a', 'while a is dead', 'two', 'three');
    assert.deepEqual(await ann.missed(), ['while a is dead', 'two', 'three']);
    await bob.here('Ann', 'Bob (you)');
    await ann.say('back');
    const all = ['by b', 'by a', 'while a is dead', 'two', 'three', 'back'];
    await bob.sees(...all);

    // Once more, while notes come all the time.
    let stop = false;
    const writing = (async () => {
      for (let i = 0; i < 150 && !stop; i++) {
        await post(b, `note ${i}`);
        all.push(`note ${i}`);
      }
    })();
    await ann.page.waitForFunction((n) => document.querySelectorAll('#notes li').length > n, {}, all.length + 3);
    await end(a.process);
    await ann.state('Reconnecting…');
    a = await serve('-addr', a.host, '-nats', b.nats);
    await ann.state('Online');
    await ann.page.waitForFunction(() => document.getElementById('recovery').dataset.recovered === 'yes');
    stop = true;
    await writing;
    await ann.sees(...all);
    await bob.sees(...all);
    for (const tab of [ann, bob]) {
      assert.deepEqual(faults(tab), []);
      await tab.close();
    }
  });
});

test('screenshots', { skip: !process.env.UPDATE_SCREENSHOTS && 'made with UPDATE_SCREENSHOTS=1' }, async () => {
  const to = join(root, 'examples/live-board/images');
  mkdirSync(to, { recursive: true });
  const server = await serve('-addr', '127.0.0.1:0');
  const mia = await open(server, 'Mia'), leo = await open(server, 'Leo', 390, 844), ada = await open(server, 'Ada');
  await mia.say('The train leaves at 9:40.');
  await leo.say('I bring the projector.');
  await ada.sees('The train leaves at 9:40.', 'I bring the projector.');
  await mia.cut();
  await mia.state('Cut');
  await ada.say('Platform 7, not 5!');
  await leo.sees('The train leaves at 9:40.', 'I bring the projector.', 'Platform 7, not 5!');
  await mia.cut();
  await mia.reconnected('yes', 1);
  await mia.here('Ada', 'Leo', 'Mia (you)');
  await leo.page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  await leo.cut();
  await leo.state('Cut');
  await mia.say('Thanks.');
  await leo.cut();
  await leo.reconnected('yes', 1);
  for (const [tab, name] of [[leo, 'live-board-390.png'], [mia, 'live-board-1280.png']]) {
    await tab.page.bringToFront();
    await tab.page.screenshot({ path: join(to, name) });
  }
  for (const tab of [mia, leo, ada]) await tab.close();
  await end(server.process);
});

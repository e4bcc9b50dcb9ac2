// Drives the typed-web example in real Chromium: typed calls in both directions and a server stream, by keyboard.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { build, close, end, launch, open as openTab, root, start } from './harness.mjs';

let server, url;
const serve = async (addr) => ([server, url] = await start('typed-web', 'typed-web is at ', '-addr', addr));

before(async () => {
  build('typed-web', './examples/typed-web');
  await serve('127.0.0.1:0');
  await launch();
}, { timeout: 180_000 });
after(close);

async function open(width = 1280, height = 800, scheme = 'light') {
  const tab = await openTab(url, width, height), { page } = tab;
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  await page.waitForFunction(() => document.querySelectorAll('#rooms li').length === 3);
  return {
    ...tab,
    online: () => page.waitForFunction(() => document.getElementById('state').textContent === 'Online'),
    received: () => page.$eval('#received', (e) => parseInt(e.textContent)),
    target: (room, want) => page.waitForFunction((room, want) => {
      const item = [...document.querySelectorAll('#rooms li')].find((li) => li.querySelector('h2').textContent === room);
      return item.ariaBusy === 'false' && item.querySelector('output').textContent === want && item.querySelector('input').valueAsNumber === parseFloat(want);
    }, {}, room, want),
    /** Waits for the last line of the log: direction, method, value, answer. */
    line: (...want) => page.waitForFunction((want) => {
      const li = document.querySelector('#entries li');
      return li && JSON.stringify([...li.querySelectorAll('.kind, code, li > span')].map((e) => e.textContent)) === want;
    }, {}, JSON.stringify(want)).catch(async () => {
      assert.deepEqual(await page.$$eval('#entries li:first-child :is(.kind, code, li > span)', (all) => all.map((e) => e.textContent)), want);
    }),
    /** Moves the target of a room with the keyboard. */
    press: async (room, key, times = 1) => {
      await page.focus(`[aria-label="${room} target"]`);
      for (let i = 0; i < times; i++) await page.keyboard.press(key);
    },
  };
}

const asked = ({ page }) => page.waitForSelector('#question[open]');
const notAsked = ({ page }) => page.waitForSelector('#question:not([open])');

test('a typed call, a stream, and the question of the server', async () => {
  const page = await open(), phone = await open(390, 844, 'dark');
  await page.online();
  await page.target('Kitchen', '20.0 °C');

  // The page calls the server; the other page learns of it by its stream.
  await page.press('Kitchen', 'ArrowRight');
  await page.target('Kitchen', '20.5 °C');
  await phone.target('Kitchen', '20.5 °C');
  const [from, method, value, answer] = await page.page.$$eval('#entries li:first-child :is(.kind, code, li > span)', (all) => all.map((e) => e.textContent));
  assert.deepEqual([from, method, value], ['page → server', 'House.SetTarget', 'Kitchen, 20.5 °C']);
  assert.match(answer, /^Kitchen: \d+\.\d °C, heating$/);
  assert.equal(await phone.page.$('#entries li'), null);
  await phone.page.focus('[aria-label="Kitchen cooler"]');
  await phone.page.keyboard.press('Enter');
  await page.target('Kitchen', '20.0 °C');

  // The stream goes on.
  const before = await page.received();
  await page.page.waitForFunction((n) => parseInt(document.getElementById('received').textContent) > n, {}, before + 1);

  // The server asks the page that has called, and no other. Yes:
  await page.press('Bedroom', 'End');
  await asked(page);
  assert.equal(await page.page.$eval('#question-text', (e) => e.textContent), '30 °C in the Bedroom? Each degree more takes about 6 % more energy.');
  assert.equal(await phone.page.$('#question[open]'), null);
  await page.page.keyboard.press('Tab');
  await page.page.keyboard.press('Enter');
  await notAsked(page);
  await page.target('Bedroom', '30.0 °C');
  await phone.target('Bedroom', '30.0 °C');
  assert.deepEqual((await page.page.$$eval('#entries li', (all) => all.map((li) => [...li.querySelectorAll('code, li > span')].map((e) => e.textContent))))
    .slice(0, 1).map(([m, , a]) => [m, a]), [['Resident.Confirm', 'yes']]);

  // No, by Escape: the target goes back.
  await phone.press('Living room', 'End');
  await asked(phone);
  await phone.page.keyboard.press('Escape');
  await notAsked(phone);
  await phone.target('Living room', '21.5 °C');
  await phone.line('server → page', 'Resident.Confirm', '30 °C in the Living room? Each degree more takes about 6 % more energy.', 'no');
  assert.equal(await phone.page.$eval('#entries li:nth-child(2) .failed', (e) => e.textContent), 'Aborted: nothing was changed');
  assert.equal(await phone.page.$eval('#problem', (e) => e.textContent), '');

  for (const tab of [page, phone]) {
    // Nothing is wider than the page, all that can be operated has a name and is large enough to touch.
    const [wide, nameless, small] = await tab.page.evaluate(() => {
      const operated = [...document.querySelectorAll('#rooms :is(button, input)')];
      return [
        document.documentElement.scrollWidth - innerWidth,
        operated.filter((e) => !(e.ariaLabel || e.labels?.length)).length,
        operated.filter((e) => e.getBoundingClientRect().height < 44).length,
      ];
    });
    assert.deepEqual([wide, nameless, small], [0, 0, 0]);
    assert.deepEqual(tab.faults, []);
    await tab.close();
  }
});

test('the page watches again when the server is killed and restarted', async () => {
  const page = await open();
  await page.online();
  await page.press('Kitchen', 'End');
  await asked(page);
  await end(server);
  // The question is taken back with its connection.
  await notAsked(page);
  await page.line('server → page', 'Resident.Confirm', '30 °C in the Kitchen? Each degree more takes about 6 % more energy.', 'the question was taken back');
  await page.page.waitForFunction(() => document.getElementById('problem').textContent);
  await serve(new URL(url).host);
  await page.online();
  await page.target('Kitchen', '20.0 °C'); // a new house
  await page.press('Kitchen', 'ArrowLeft');
  await page.target('Kitchen', '19.5 °C');
  assert.equal(await page.page.$eval('#problem', (e) => e.textContent), '');
  await page.close();
});

test('the server stops in order while a page watches and is asked', async () => {
  const page = await open();
  await page.online();
  await page.press('Kitchen', 'End');
  await asked(page);
  const exited = once(server, 'exit');
  server.kill('SIGINT');
  assert.deepEqual(await exited, [0, null]);
  await notAsked(page);
  await serve(new URL(url).host);
  await page.close();
});

test('screenshots', { skip: !process.env.UPDATE_SCREENSHOTS && 'made with UPDATE_SCREENSHOTS=1' }, async () => {
  const to = join(root, 'docs/images');
  mkdirSync(to, { recursive: true });
  const page = await open(1280, 800), phone = await open(390, 844, 'dark');
  await page.press('Living room', 'ArrowRight');
  await page.target('Living room', '22.0 °C');
  await page.press('Kitchen', 'End');
  await asked(page);
  await page.page.keyboard.press('Escape');
  await page.target('Kitchen', '20.0 °C');
  await page.press('Bedroom', 'ArrowRight', 3);
  await page.target('Bedroom', '18.5 °C');
  await phone.page.waitForFunction(() => parseInt(document.getElementById('received').textContent) > 60);
  await phone.press('Kitchen', 'End');
  await asked(phone);
  for (const [tab, name] of [[phone, 'typed-web-390.png'], [page, 'typed-web-1280.png']]) {
    await tab.page.bringToFront();
    await tab.page.screenshot({ path: join(to, name) });
    await tab.close();
  }
});

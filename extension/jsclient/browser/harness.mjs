// What the tests here share: Go programs that are built and run, and a Chromium. Each test file is a process of its own, and so has its own.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { createInterface } from 'node:readline';
import puppeteer from 'puppeteer-core';

/** The root of the repository. */
export const root = join(import.meta.dirname, '../../..');

const dir = mkdtempSync(join(tmpdir(), 'arpc-browser-'));
const running = new Set();
let browser;

// Whatever happens, nothing that was started stays.
process.on('exit', () => {
  running.forEach((p) => p.kill('SIGKILL'));
  browser?.process()?.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
});

for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));

/** Starts the browser, of which there is one; args are further switches of Chromium. */
export async function launch(...args) {
  const path = process.env.CHROMIUM ?? process.env.PATH.split(delimiter).map((d) => join(d, 'chromium')).find(existsSync);
  if (!path) throw new Error('there is no chromium: npm run chromium installs it on Debian, or set CHROMIUM to its path');
  browser = await puppeteer.launch({
    executablePath: path,
    userDataDir: join(dir, 'profile'),
    args: ['--no-sandbox', '--headless=new', '--disable-dev-shm-usage', '--disable-gpu', '--force-color-profile=srgb', ...args],
  });
}

/** Ends the browser and all programs. */
export async function close() {
  await browser?.close();
  for (const p of running) await end(p);
}

/** Builds a Go program, whose package is relative to the root, or to a directory with a module of its own. */
export function build(name, pkg, module = '.') {
  execFileSync('go', ['build', '-o', join(dir, name), pkg], { cwd: join(root, module), env: { ...process.env, GOWORK: 'off' }, stdio: 'inherit' });
}

/** Starts a program that was built; returns its process, what follows the prefix in its first line, and its further lines. */
export async function start(name, prefix, ...args) {
  const p = spawn(join(dir, name), args, { stdio: ['pipe', 'pipe', 'inherit'] });
  running.add(p);
  const lines = createInterface({ input: p.stdout })[Symbol.asyncIterator]();
  const { value } = await lines.next();
  assert.ok(value?.startsWith(prefix), `${name} says ${value}`);
  return [p, value.slice(prefix.length), lines];
}

/** Kills a program. */
export async function end(p) {
  if (p.exitCode === null && p.signalCode === null) {
    const exited = once(p, 'exit');
    p.kill('SIGKILL');
    await exited;
  }
  running.delete(p);
}

/** A tab of its own browser context, whose faults are collected. */
export async function open(url, width = 1280, height = 800) {
  const context = await browser.createBrowserContext(), page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const faults = [];
  page.on('pageerror', (e) => faults.push(String(e)));
  page.on('console', (m) => m.type() === 'error' && faults.push(m.text()));
  await page.setViewport({ width, height });
  await page.goto(url);
  return { page, faults, close: () => context.close() };
}

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { inject, onTestFinished } from 'vitest';
import WebSocket from 'ws';
import { ArpcError, Client, type ClientEvents, type ClientOptions, type Code } from '@arpc-go/arpc';

/** A running Go server. */
export interface Server {
  addr: string;
  url: string;
  /** With -http: where binary calls are answered. */
  http: string;
  kill(): Promise<void>;
  exited: Promise<void>;
}

const all = new Set<ChildProcess>();
process.on('exit', () => all.forEach((p) => p.kill('SIGKILL')));

/** Starts a Go server, for the rest of the test. */
export async function startServer(...args: string[]): Promise<Server> {
  const p = spawn(inject('server'), args, { stdio: ['pipe', 'pipe', 'inherit'] });
  all.add(p);
  const exited = once(p, 'exit').then(() => void all.delete(p));
  const kill = async (): Promise<void> => {
    p.kill('SIGKILL');
    await exited;
  };
  const lines = createInterface({ input: p.stdout })[Symbol.asyncIterator]();
  const line = async (): Promise<string> => {
    const l = await lines.next();
    if (l.done) throw new Error('the server has ended');
    return l.value;
  };
  const http = args.includes('-http') ? `http://${await line()}/` : '', addr = await line();
  return { addr, http, url: `ws://${addr}/ws`, kill, exited };
}

/** Opens a client, for the rest of the test. */
export function connect(url: string, options: ClientOptions = {}): Client {
  const c = new Client(url, { WebSocket, reconnect: { min: 20, max: 200 }, ...options });
  onTestFinished(() => c.close());
  return c;
}

/** The next event. */
export function event<K extends keyof ClientEvents>(c: Client, name: K, ok: (...args: ClientEvents[K]) => boolean = () => true): Promise<ClientEvents[K]> {
  return new Promise((resolve) => {
    const off = c.on(name, (...args) => {
      if (!ok(...args)) return;
      off();
      resolve(args);
    });
  });
}

export async function opened(c: Client): Promise<Client> {
  if (c.state !== 'open') await event(c, 'open');
  return c;
}

/** The ArpcError with which something fails. */
export async function failure(p: Promise<unknown> | (() => unknown), code?: Code): Promise<ArpcError> {
  let value: unknown;
  try {
    value = await (typeof p === 'function' ? p() : p);
  } catch (e) {
    if (!(e instanceof ArpcError)) throw e;
    if (code !== undefined && e.code !== code) throw new Error(`code ${e.code}, not ${code}: ${e.message}`);
    return e;
  }
  throw new Error(`no failure, but ${JSON.stringify(value)}`);
}

/** Something that will be, resolved from outside. */
export function later<T = void>(): { promise: Promise<T>; resolve: (v: T) => void } {
  let resolve!: (v: T) => void;
  const promise = new Promise<T>((r) => {
    resolve = r;
  });
  return { promise, resolve };
}

export const hex = (b: Uint8Array): string => Buffer.from(b).toString('hex');
export const unhex = (s: string): Uint8Array => new Uint8Array(Buffer.from(s.replace(/\s/g, ''), 'hex'));

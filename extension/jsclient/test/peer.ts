// A server that does what a test says, frame by frame.

import type { AddressInfo } from 'node:net';
import { onTestFinished } from 'vitest';
import { WebSocketServer, type WebSocket } from 'ws';
import { Cmd, empty, makeFrame, Splitter, text, utf8, type Seq } from '../src/frame.js';
import { encodeHello, Feature, type Hello } from '../src/hello.js';
import { hex } from './helper.js';

/** A received frame. */
export interface Got {
  cmd: number;
  flag: number;
  seq: bigint;
  method: string;
  rest: Uint8Array;
  hex: string;
  /** Which message brought it. */
  message: number;
}

/** A connection, seen from the peer. */
export class Conn {
  readonly closed: Promise<{ code: number; reason: string }>;
  messages = 0;
  private readonly frames: Got[] = [];
  private readonly waiting: ((f: Got) => void)[] = [];

  constructor(readonly ws: WebSocket) {
    const splitter = new Splitter(1 << 26);
    ws.on('message', (data: Buffer) => {
      this.messages++;
      splitter.push(new Uint8Array(data), (b) => {
        const n = b[7]!, v = new DataView(b.buffer, b.byteOffset);
        const f = {
          cmd: b[5]!, flag: b[6]!, seq: v.getBigUint64(8, true), method: text(b.subarray(16, 16 + n)), rest: b.slice(16 + n),
          hex: hex(b), message: this.messages,
        };
        const w = this.waiting.shift();
        if (w) w(f);
        else this.frames.push(f);
      });
    });
    this.closed = new Promise((resolve) => {
      ws.on('close', (code, reason) => resolve({ code, reason: String(reason) }));
    });
  }

  /** The next frame. */
  next(): Promise<Got> {
    const f = this.frames.shift();
    return f ? Promise.resolve(f) : new Promise((resolve) => this.waiting.push(resolve));
  }

  /** Whether a frame has come that next would return. */
  get some(): boolean {
    return this.frames.length > 0;
  }

  raw(...frames: Uint8Array[]): void {
    this.ws.send(Buffer.concat(frames));
  }

  send(cmd: number, flag: number, seq: Seq, method: string, payload: string | Uint8Array = empty, left?: number, md?: Uint8Array): void {
    this.raw(frame(cmd, flag, seq, method, payload, left, md));
  }

  /** Answers the HELLO, by default as an old peer. */
  async greet(h?: Partial<Hello>): Promise<Got> {
    const f = await this.next();
    if (h) {
      const all = { features: Feature.All, body: 1 << 20, metadata: 1024, window: 8192, windows: 32768, streams: 10, ...h };
      this.send(Cmd.Pong, 0, 0, '', encodeHello(all, 'json'));
    } else {
      this.send(Cmd.Pong, 0, 0, '');
    }
    return f;
  }
}

export const frame = (
  cmd: number, flag: number, seq: Seq, method: string, payload: string | Uint8Array = empty, left?: number, md?: Uint8Array,
): Uint8Array => makeFrame(cmd, flag, seq, utf8(method), typeof payload === 'string' ? utf8(payload) : payload, left, md);

export class Peer {
  url = '';
  private readonly conns: Conn[] = [];
  private readonly waiting: ((c: Conn) => void)[] = [];

  static async start(): Promise<Peer> {
    const p = new Peer(), server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
    server.on('connection', (ws) => {
      const c = new Conn(ws), w = p.waiting.shift();
      if (w) w(c);
      else p.conns.push(c);
    });
    await new Promise((resolve) => server.on('listening', resolve));
    p.url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    onTestFinished(() => {
      for (const c of server.clients) c.terminate();
      server.close();
    });
    return p;
  }

  /** The next connection. */
  accept(): Promise<Conn> {
    const c = this.conns.shift();
    return c ? Promise.resolve(c) : new Promise((resolve) => this.waiting.push(resolve));
  }
}

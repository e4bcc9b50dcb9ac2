// Frames: the header of 16 bytes, the method, and what follows. Integers are little-endian.

import { ArpcError, Code } from './error.js';
import { invalidMetadata, validMetadata } from './metadata.js';

export const enum Cmd {
  Request = 1,
  Response = 2,
  Notify = 3,
  Ping = 4,
  Pong = 5,
  Stream = 6,
  Cancel = 7,
  Credit = 8,
  Reset = 9,
  GoAway = 10,
  Mask = 0x3f,
  /** Of a stream: the sender's last frame. */
  Last = 0x40,
  /** Of a stream: the sender opened it. */
  Own = 0x80,
}

export const enum Flag {
  Error = 0x01,
  Async = 0x02,
  Metadata = 0x04,
  Deadline = 0x08,
  Coded = 0x10,
  Open = 0x20,
  More = 0x40,
  NoData = 0x80,
  V1 = 0x03,
}

export const enum Size {
  Head = 16,
  Method = 127,
  /** The longest body that is accepted by default: 64 MiB with the header. */
  Body = 67108848,
}

/**
 * The number of a call or stream. It has 64 bits: a number where that is exact, a bigint above, so that each has one form and
 * may be the key of a Map.
 */
export type Seq = number | bigint;

/** A received frame. Its bytes are parts of the message that brought it. */
export interface Frame {
  cmd: number;
  flag: number;
  seq: Seq;
  /** The whole frame. */
  bytes: Uint8Array;
  method: Uint8Array;
  /** Milliseconds that are left to the caller. */
  left?: number;
  metadata?: Uint8Array;
  payload: Uint8Array;
}

const encoder = new TextEncoder();
// A byte order mark is a part of a text like any other.
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

export const utf8 = (text: string): Uint8Array => encoder.encode(text);
export const text = (bytes: Uint8Array): string => decoder.decode(bytes);
export const empty = new Uint8Array(0);

export const view = (b: Uint8Array): DataView => new DataView(b.buffer, b.byteOffset, b.byteLength);

/** Joins pieces; the result has a buffer of its own unless there is one piece only. */
export function join(parts: Uint8Array[]): Uint8Array {
  if (parts.length === 1) return parts[0]!;
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

/** The bytes of a route. */
export function methodBytes(route: string): Uint8Array {
  const b = utf8(route);
  if (!b.length || b.length > Size.Method) throw new ArpcError(Code.InvalidArgument, 'invalid method: must have 1 to 127 bytes');
  return b;
}

/** Makes a frame, in a buffer of its own. */
export function makeFrame(
  cmd: number, flag: number, seq: Seq, method: Uint8Array, payload: Uint8Array, left?: number, metadata?: Uint8Array,
): Uint8Array {
  let at = Size.Head + method.length;
  if (left !== undefined) flag |= Flag.Deadline;
  if (metadata) flag |= Flag.Metadata;
  const extension = (left !== undefined ? 4 : 0) + (metadata ? 2 + metadata.length : 0);
  const b = new Uint8Array(at + extension + payload.length);
  const v = view(b);
  v.setUint32(0, b.length - Size.Head, true);
  b[5] = cmd;
  b[6] = flag;
  b[7] = method.length;
  v.setBigUint64(8, BigInt(seq), true);
  b.set(method, Size.Head);
  if (left !== undefined) {
    v.setUint32(at, left, true);
    at += 4;
  }
  if (metadata) {
    v.setUint16(at, metadata.length, true);
    b.set(metadata, at + 2);
  }
  b.set(payload, b.length - payload.length);
  return b;
}

export function seqOf(b: Uint8Array): Seq {
  const v = view(b), high = v.getUint32(12, true);
  return high < 0x200000 ? high * 0x100000000 + v.getUint32(8, true) : v.getBigUint64(8, true);
}

export const malformed = (what: string): ArpcError => new ArpcError(Code.InvalidArgument, 'malformed frame: ' + what);

/**
 * Takes a frame apart. Without version 2 its flags are ignored. It returns undefined for a method length that makes no sense,
 * and throws when what stands between method and payload makes none.
 */
export function parseFrame(b: Uint8Array, v2: boolean, maxMetadata: number): Frame | undefined {
  const flag = v2 ? b[6]! : b[6]! & Flag.V1;
  const n = b[7]!, cmd = b[5]!;
  let at = Size.Head + n;
  const f: Frame = { cmd, flag, seq: seqOf(b), bytes: b, method: b.subarray(Size.Head, at), payload: empty };
  if ((cmd & Cmd.Mask) >= Cmd.Cancel) {
    if (n) throw malformed('method of a control frame');
  } else if (!n || n > Size.Method || at > b.length) {
    return;
  } else {
    const v = view(b);
    if (flag & Flag.Deadline) {
      if (at + 4 > b.length) throw malformed('deadline');
      f.left = v.getUint32(at, true);
      at += 4;
    }
    if (flag & Flag.Metadata) {
      const size = at + 2 > b.length ? 65536 : v.getUint16(at, true);
      f.metadata = b.subarray(at += 2, at += size);
      if (at > b.length || size > maxMetadata || !validMetadata(f.metadata)) throw invalidMetadata('malformed');
    }
  }
  f.payload = b.subarray(at);
  return f;
}

/** Cuts a stream of bytes into frames, however it was split into messages. */
export class Splitter {
  private parts: Uint8Array[] = [];
  private size = 0;
  private need: number = Size.Head;

  constructor(private readonly max: number) {}

  /** Takes bytes and calls each for every frame that is complete now. It throws on a body above the limit. */
  push(bytes: Uint8Array, each: (frame: Uint8Array) => void): void {
    this.parts.push(bytes);
    this.size += bytes.length;
    if (this.size < this.need) return;
    const b = join(this.parts);
    let at = 0;
    for (;;) {
      this.need = Size.Head;
      if (b.length - at < Size.Head) break;
      const body = view(b).getUint32(at, true);
      if (body > this.max) throw new ArpcError(Code.ResourceExhausted, `frame of ${body} bytes is above the limit`);
      this.need += body;
      if (b.length - at < this.need) break;
      each(b.subarray(at, at += this.need));
    }
    this.parts = at < b.length ? [b.subarray(at)] : [];
    this.size = b.length - at;
  }
}

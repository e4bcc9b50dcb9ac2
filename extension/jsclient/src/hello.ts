// HELLO: what the ends of a connection say about themselves, in the first ping and its pong.

import { ArpcError, Code } from './error.js';
import { join, text, utf8, view } from './frame.js';

export const enum Feature {
  Metadata = 1,
  Cancel = 2,
  Errors = 4,
  Streams = 8,
  GoAway = 16,
  All = 31,
}

export interface Hello {
  features: number;
  /** The longest body of a frame that is accepted, in bytes. */
  body: number;
  /** The longest metadata block. */
  metadata: number;
  /** What may be sent on a new stream, and on all of them together. */
  window: number;
  windows: number;
  /** How many streams the other may have open. */
  streams: number;
}

const magic = 'arpc';
const fixed = 32;

export function encodeHello(h: Hello, codec: string): Uint8Array {
  const b = new Uint8Array(fixed), v = view(b);
  b.set(utf8(magic));
  b[4] = 2;
  b[5] = fixed;
  [h.features, h.body, h.metadata, h.window, h.windows, h.streams].forEach((n, i) => v.setUint32(8 + 4 * i, n, true));
  const name = utf8(codec);
  return name.length && name.length < 256 && !codec.includes(',') ? join([b, Uint8Array.of(name.length), name]) : b;
}

/** Decodes the body of a pong; undefined if it is not a HELLO: the peer is of version 1. It throws on a malformed one. */
export function decodeHello(b: Uint8Array): Hello | undefined {
  if (text(b.subarray(0, 4)) !== magic) return;
  const bad = (): ArpcError => new ArpcError(Code.InvalidArgument, 'malformed HELLO');
  if (b.length < fixed || b.length > 4096 || b[4]! < 2 || b[5]! < fixed || b[5]! > b.length) throw bad();
  const v = view(b), word = (i: number): number => v.getUint32(8 + 4 * i, true);
  const h = { features: word(0), body: word(1), metadata: word(2), window: word(3), windows: word(4), streams: word(5) };
  if (
    h.features & ~Feature.All || h.body < 4096 ||
    (h.features & Feature.Streams && (h.window < 4096 || h.windows < h.window || h.windows > 0x7fffffff))
  ) throw bad();
  for (let at = b[5]!; at < b.length;) {
    const n = b[at]!;
    if (!n || at + 1 + n > b.length || b.subarray(at + 1, at + 1 + n).includes(0x2c)) throw bad();
    at += 1 + n;
  }
  return h;
}

// Metadata: pairs that travel with a call beside its value.

import { ArpcError, Code } from './error.js';
import { join, text, utf8 } from './frame.js';

/**
 * Small pairs that travel with a call, notification or stream, or with an answer. A key has 1 to 255 bytes. A value is a text,
 * or bytes where it is not UTF-8. Peers of version 1 of the protocol do not get them.
 */
export type Metadata = Record<string, string | Uint8Array>;

export const invalidMetadata = (why: string): ArpcError => new ArpcError(Code.InvalidArgument, 'invalid metadata: ' + why);

/** Encodes pairs; undefined if there are none. */
export function encodeMetadata(...all: (Metadata | undefined)[]): Uint8Array | undefined {
  const parts: Uint8Array[] = [];
  let size = 0;
  for (const [key, value] of Object.entries(Object.assign({}, ...all) as Metadata)) {
    const k = utf8(key), v = typeof value === 'string' ? utf8(value) : value;
    if (!k.length || k.length > 255) throw invalidMetadata(`a key has ${k.length} bytes`);
    parts.push(Uint8Array.of(k.length), k, Uint8Array.of(v.length, v.length >> 8), v);
    size += 3 + k.length + v.length;
  }
  if (size > 65535) throw invalidMetadata('more than 65535 bytes');
  return size ? join(parts) : undefined;
}

/** Calls f for each pair; false if the block is malformed. */
function pairs(b: Uint8Array, f: (key: Uint8Array, value: Uint8Array) => void): boolean {
  let at = 0;
  while (at < b.length) {
    const k = at + 1, v = k + b[at]! + 2;
    if (v === k + 2 || v > b.length) return false;
    at = v + b[v - 2]! + (b[v - 1]! << 8);
    if (at > b.length) return false;
    f(b.subarray(k, v - 2), b.subarray(v, at));
  }
  return true;
}

export const validMetadata = (b: Uint8Array): boolean => pairs(b, () => {});

const strict = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

/** Decodes a valid block; the last of equal keys counts. */
export function decodeMetadata(b?: Uint8Array): Metadata {
  const md = Object.create(null) as Metadata; // so that no key means more than its value
  if (b) {
    pairs(b, (k, v) => {
      try {
        md[text(k)] = strict.decode(v);
      } catch {
        md[text(k)] = v.slice();
      }
    });
  }
  return md;
}

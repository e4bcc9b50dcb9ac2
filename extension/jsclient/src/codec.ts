// Values and payloads.

import { empty, text, utf8 } from './frame.js';

/** Turns values into bytes and back. */
export interface Codec {
  readonly name: string;
  encode(value: unknown): Uint8Array;
  decode(bytes: Uint8Array): unknown;
}

/**
 * What form a value has on the wire.
 *
 * Without it, undefined is sent as an empty payload, a string as its UTF-8 bytes without quotes, Uint8Array, ArrayBuffer and other
 * views as their bytes, and everything else by the client's codec; what is received goes through the codec. Of the JSON codec,
 * an empty payload is then '', and a payload that is no JSON is a text.
 *
 * - 'bytes': sent as above, received as a Uint8Array
 * - 'text': sent as above, received as a string
 * - 'json': JSON exactly in both directions, strings in quotes; an empty payload is received as null
 * - a Codec: that one in both directions, for all values
 */
export type As = 'json' | 'text' | 'bytes' | Codec;

/** JSON, exactly. */
const exact: Codec = {
  name: 'json',
  encode: (value) => utf8(JSON.stringify(value) ?? ''),
  decode: (b) => (b.length ? JSON.parse(text(b)) : null),
};

/** The default codec. As that, it takes a payload which is no JSON for a text: Go programs send strings so. */
export const json: Codec = { ...exact };

const raw = (value: unknown): Uint8Array | undefined =>
  value === undefined ? empty
    : typeof value === 'string' ? utf8(value)
      : ArrayBuffer.isView(value) ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
        : value instanceof ArrayBuffer ? new Uint8Array(value) : undefined;

/** The rules without As. */
export const auto = (codec: Codec): Codec => ({
  name: codec.name,
  encode: (value) => raw(value) ?? codec.encode(value),
  decode: (b) => {
    if (codec !== json) return codec.decode(b);
    const s = text(b);
    try {
      return JSON.parse(s);
    } catch {
      return s;
    }
  },
});

/** Sends bytes and texts as they are, and receives bytes. As the codec of a client it refuses other values. */
export const bytes: Codec = {
  name: 'bytes',
  encode: (value) => {
    const b = raw(value);
    if (!b) throw new TypeError('not bytes');
    return b;
  },
  decode: (b) => b.slice(),
};

/** The codec of an As, for what carries values within payloads of its own; codec is the client's. */
export function form(as: As | undefined, codec: Codec): Codec {
  if (as === undefined) return auto(codec);
  if (typeof as === 'object') return as;
  if (as === 'json') return exact;
  return { ...auto(codec), decode: as === 'bytes' ? bytes.decode : text };
}

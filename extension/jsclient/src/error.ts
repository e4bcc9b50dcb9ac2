// Errors: codes, messages and details, and how they travel.

import { auto, type Codec } from './codec.js';
import { join, text, utf8, view } from './frame.js';

/** What kind of error it is. The numbers and meanings are gRPC's; peers may agree on others of up to 255. Code[n] is a name. */
export enum Code {
  Canceled = 1,
  Unknown = 2,
  InvalidArgument = 3,
  DeadlineExceeded = 4,
  NotFound = 5,
  AlreadyExists = 6,
  PermissionDenied = 7,
  ResourceExhausted = 8,
  FailedPrecondition = 9,
  Aborted = 10,
  OutOfRange = 11,
  Unimplemented = 12,
  Internal = 13,
  Unavailable = 14,
  DataLoss = 15,
  Unauthenticated = 16,
}

/** A further value of an error, under a name that both ends know. */
export interface Detail {
  name: string;
  value: unknown;
  /** Of an error that came from the peer: the value's encoding. */
  bytes?: Uint8Array;
}

/** How a call, a stream or a connection fails. */
export class ArpcError extends Error {
  readonly code: Code;
  readonly details: readonly Detail[];
  /** Whether the peer decided, not this side. */
  readonly remote: boolean;

  constructor(code: Code, message: string, options: { details?: readonly Detail[]; remote?: boolean; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'ArpcError';
    this.code = code;
    this.details = options.details ?? [];
    this.remote = !!options.remote;
  }
}

/** Makes an ArpcError of whatever was thrown. */
export function toError(e: unknown, otherwise: Code = Code.Unknown, prefix = ''): ArpcError {
  if (e instanceof ArpcError) return e;
  const { name, message } = (e ?? {}) as Partial<Error>;
  const code = name === 'AbortError' ? Code.Canceled : name === 'TimeoutError' ? Code.DeadlineExceeded : otherwise;
  return new ArpcError(code, prefix + (message ?? String(e)), { cause: e });
}

export const timeUp = (): ArpcError => new ArpcError(Code.DeadlineExceeded, 'timeout');

/** Why something that depends on a connection ended with it. */
export function lost(cause: ArpcError): ArpcError {
  const what = cause.remote ? 'the peer says: ' : '';
  return new ArpcError(Code.Unavailable, 'connection lost: ' + what + cause.message, { cause });
}

/** The codes of texts that old peers send. */
export function codeOfText(message: string): Code {
  const known: Record<string, Code> = {
    'method not found': Code.Unimplemented,
    'too many requests in line': Code.ResourceExhausted,
    'too many handlers of this connection wait in calls': Code.ResourceExhausted,
    'server is shutting down': Code.Unavailable,
    'malformed request: method length': Code.InvalidArgument,
    'the connection is not authenticated': Code.Unauthenticated,
  };
  return Object.hasOwn(known, message) ? known[message]! : message.startsWith('internal error: ') ? Code.Internal : Code.Unknown;
}

/** Encodes an error as version 2 of the protocol has it. A detail that cannot be encoded is left out. */
export function encodeError(e: ArpcError, codec: Codec): Uint8Array {
  const message = cut(e.message, 65536);
  const head = new Uint8Array(6);
  head[0] = e.code >= 1 && e.code <= 255 ? e.code : Code.Unknown;
  view(head).setUint32(2, message.length, true);
  const parts = [head, message];
  for (const d of e.details) {
    const name = utf8(d.name);
    if (name.length > 255 || head[1] === 255) continue;
    try {
      const value = d.bytes ?? auto(codec).encode(d.value);
      const size = new Uint8Array(4);
      view(size).setUint32(0, value.length, true);
      parts.push(Uint8Array.of(name.length), name, size, value);
      head[1]!++;
    } catch { /* left out */ }
  }
  return join(parts);
}

/** The bytes of a text, at most n. */
export function cut(message: string, n: number): Uint8Array {
  const b = utf8(message);
  if (b.length <= n) return b;
  while ((b[n]! & 0xc0) === 0x80) n--; // not within a character
  return b.subarray(0, n);
}

/** Decodes what encodeError has encoded. Of one that is malformed it makes Code.Internal. */
export function decodeError(b: Uint8Array, codec: Codec): ArpcError {
  let at = 6;
  const take = (n: number): Uint8Array => {
    if (at + n > b.length) throw 0;
    return b.subarray(at, at += n);
  };
  try {
    if (b.length < at || !b[0]) throw 0;
    const message = text(take(view(b).getUint32(2, true)));
    const details: Detail[] = [];
    for (let i = b[1]!; i > 0; i--) {
      const name = text(take(take(1)[0]!));
      const bytes = take(view(take(4)).getUint32(0, true)).slice();
      let value: unknown = bytes;
      try {
        value = auto(codec).decode(bytes);
      } catch { /* the bytes, then */ }
      details.push({ name, value, bytes });
    }
    return new ArpcError(b[0], message, { details, remote: true });
  } catch {
    return new ArpcError(Code.Internal, 'malformed error', { remote: true });
  }
}

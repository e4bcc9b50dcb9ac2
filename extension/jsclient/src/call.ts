// Calls in flight.

import type { Codec } from './codec.js';
import { ArpcError, Code, decodeError, codeOfText, timeUp, toError } from './error.js';
import { Flag, text, type Frame } from './frame.js';
import { decodeMetadata, type Metadata } from './metadata.js';

/** The longest that a timer can wait, in milliseconds. */
const maxTimer = 0x7fffffff;

/**
 * A limit in time, and a signal, that something ends by: whichever comes first calls end, once.
 */
export class Limit {
  private timer?: ReturnType<typeof setTimeout>;
  private readonly until: number;

  constructor(timeout: number | undefined, private readonly signal: AbortSignal | undefined, private readonly end: (e: ArpcError, bySignal?: boolean) => void) {
    this.until = performance.now() + (timeout ?? Infinity);
    if (signal?.aborted) {
      this.abort();
      return;
    }
    signal?.addEventListener('abort', this.abort);
    if (timeout !== undefined && timeout <= maxTimer) {
      this.timer = setTimeout(() => {
        this.stop();
        end(timeUp());
      }, Math.max(timeout, 0));
    }
  }

  /** What goes on the wire: the milliseconds that are left. */
  get left(): number | undefined {
    const left = Math.max(Math.ceil(this.until - performance.now()), 1);
    return left > 0xffffffff ? undefined : left;
  }

  stop(): void {
    clearTimeout(this.timer);
    this.signal?.removeEventListener('abort', this.abort);
  }

  private abort = (): void => {
    this.stop();
    this.end(aborted(this.signal!), true);
  };
}

/** The error of what ended because its signal was aborted. */
export const aborted = (signal: AbortSignal): ArpcError => toError(signal.reason, Code.Canceled);

/** A call that waits for its answer. */
export interface Call {
  codec: Codec;
  onMetadata?: ((md: Metadata) => void) | undefined;
  resolve(value: unknown): void;
  reject(e: ArpcError): void;
}

/** Ends a call with its answer. */
export function finish(call: Call, f: Frame, codec: Codec): void {
  try {
    call.onMetadata?.(decodeMetadata(f.metadata));
    if (!(f.flag & Flag.Error)) {
      call.resolve(call.codec.decode(f.payload));
      return;
    }
  } catch (e) {
    call.reject(toError(e, Code.Internal, 'malformed answer: '));
    return;
  }
  const message = text(f.payload);
  call.reject(f.flag & Flag.Coded ? decodeError(f.payload, codec) : new ArpcError(codeOfText(message), message, { remote: true }));
}

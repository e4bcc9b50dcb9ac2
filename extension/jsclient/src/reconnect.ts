// How long to wait between attempts to connect.

/** Times in milliseconds. */
export interface Reconnect {
  /** The first wait, default 200. */
  min?: number;
  /** The longest, default 10,000. Each is twice as long as the one before. */
  max?: number;
  /** The part of each that is random, 0 to 1, so that not all clients come back at once; default 0.5. */
  jitter?: number;
}

/** A connection that lasted for that long counts as a success; before that the waits go on growing. */
const stable = 5000;

export class Backoff {
  attempt = 0;
  private since = 0;

  constructor(private readonly times: Reconnect) {}

  /** The wait before the next attempt. */
  next(): number {
    if (this.since && performance.now() - this.since > stable) this.attempt = 0;
    this.since = 0;
    const { min = 200, max = 10_000, jitter = 0.5 } = this.times;
    return Math.min(max, min * 2 ** this.attempt++) * (1 - jitter * Math.random());
  }

  connected(): void {
    this.since = performance.now();
  }
}

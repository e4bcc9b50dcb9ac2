// A client of extension/action: numbered actions over WebSocket. A message is action:2 seq:2 body, most significant byte first; the
// body is what the server's codec makes of a value, JSON by default. The wire has no errors: what a server refuses is not answered.

/** What went wrong: the time was up, the caller gave up, there is no connection (any more), a limit was reached, or a value does not fit. */
export type ActionCode = 'deadline_exceeded' | 'canceled' | 'unavailable' | 'resource_exhausted' | 'invalid_argument';

/** How a call or a connection fails. */
export class ActionError extends Error {
  readonly code: ActionCode;

  constructor(code: ActionCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ActionError';
    this.code = code;
  }
}

/** Values to bytes and back. */
export interface ActionCodec {
  encode(value: unknown): Uint8Array;
  decode(body: Uint8Array): unknown;
}

/** A packet that answers no call in flight. */
export interface ActionPush {
  action: number;
  seq: number;
  /** The body, decoded. */
  value: unknown;
}

/** What ActionClient needs of a WebSocket. */
export interface ActionSocket {
  binaryType: string;
  readonly bufferedAmount: number;
  send(data: Uint8Array): void;
  close(code?: number): void;
  addEventListener(type: 'open' | 'error', listener: () => void): void;
  addEventListener(type: 'message', listener: (e: { data: unknown }) => void): void;
  addEventListener(type: 'close', listener: (e: { code: number; reason: string }) => void): void;
}

export interface ActionOptions {
  /** Default: JSON. */
  codec?: ActionCodec;
  /** Milliseconds that a call has which is given no other time, and connecting; default 60,000. */
  timeout?: number;
  /** Longest packet that is sent, in bytes, as the server's Limits.Frame counts them; default 65,536. */
  maxFrame?: number;
  /** Bytes that may wait to be sent; above it calls and sends fail. Default 1 MiB. */
  maxBuffered?: number;
  /** Called with each push, in their order. What it throws is thrown to the page, as by an event listener. */
  onPush?: (push: ActionPush) => void;
  /** Default: the global one. */
  WebSocket?: new (url: string) => ActionSocket;
}

export interface ActionCallOptions {
  signal?: AbortSignal;
  /** Milliseconds; default that of the client. */
  timeout?: number;
}

interface ActionCall {
  action: number;
  end(body: Uint8Array | undefined, error?: ActionError): void;
}

const jsonCodec: ActionCodec = {
  encode: (value) => new TextEncoder().encode(JSON.stringify(value) ?? 'null'),
  decode: (body) => JSON.parse(new TextDecoder().decode(body)) as unknown,
};

/** One connection to an instance of extension/action. It does not connect again. */
export class ActionClient {
  /** Resolves when the connection is over, with why. */
  readonly closed: Promise<ActionError>;
  readonly #calls = new Map<number, ActionCall>();
  readonly #options: ActionOptions;
  readonly #codec: ActionCodec;
  readonly #socket: ActionSocket;
  readonly #opened: Promise<void>;
  #seq = 0;
  #error: ActionError | undefined = new ActionError('unavailable', 'not connected yet');

  private constructor(url: string, options: ActionOptions) {
    this.#options = options;
    this.#codec = options.codec ?? jsonCodec;
    const Socket = options.WebSocket ?? (globalThis as { WebSocket?: new (url: string) => ActionSocket }).WebSocket;
    if (!Socket) throw new ActionError('unavailable', 'there is no WebSocket here: set the option');
    const s = (this.#socket = new Socket(url));
    s.binaryType = 'arraybuffer';
    let fail: (e: ActionError) => void = () => {};
    this.#opened = new Promise((resolve, reject) => {
      fail = reject;
      s.addEventListener('open', () => {
        this.#error = undefined;
        resolve();
      });
    });
    this.closed = new Promise((resolve) => {
      s.addEventListener('error', () => {}); // close follows
      s.addEventListener('close', (e) => {
        const error = new ActionError('unavailable', `connection closed: ${[e.code, e.reason].join(' ').trim()}`);
        this.#error = error;
        fail(error);
        for (const call of [...this.#calls.values()]) call.end(undefined, error);
        resolve(error);
      });
    });
    s.addEventListener('message', (e) => this.#received(e.data));
  }

  /** Connects to a URL such as ws://localhost:8082/. */
  static async connect(url: string, options: ActionOptions = {}): Promise<ActionClient> {
    const c = new ActionClient(url, options);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new ActionError('deadline_exceeded', 'not connected in time')), options.timeout ?? 60_000);
    });
    try {
      await Promise.race([c.#opened, late]);
      return c;
    } catch (e) {
      c.#opened.catch(() => {});
      c.close();
      throw e;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends a request and resolves with the value of the reply. A request that the server refuses ends with its time. */
  call<T = unknown>(action: number, value?: unknown, options: ActionCallOptions = {}): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const { signal } = options;
      if (signal?.aborted) throw new ActionError('canceled', 'canceled', signal.reason);
      const seq = this.#send(action, value);
      const aborted = (): void => call.end(undefined, new ActionError('canceled', 'canceled', signal?.reason));
      const timer = setTimeout(() => call.end(undefined, new ActionError('deadline_exceeded', 'no reply in time')), options.timeout ?? this.#options.timeout ?? 60_000);
      const call: ActionCall = {
        action: action << 16 >> 16,
        end: (body, error) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', aborted);
          this.#calls.delete(seq);
          if (!body) return reject(error ?? new ActionError('unavailable', 'no reply'));
          try {
            resolve(this.#codec.decode(body) as T);
          } catch (e) {
            reject(new ActionError('invalid_argument', `cannot decode the reply of action ${action}`, e));
          }
        },
      };
      signal?.addEventListener('abort', aborted);
      this.#calls.set(seq, call);
    });
  }

  /** Sends a request whose reply, if there is one, goes to onPush. */
  send(action: number, value?: unknown): void {
    this.#send(action, value);
  }

  /** Closes the connection; calls in flight fail. */
  close(): void {
    this.#error ??= new ActionError('unavailable', 'the client was closed');
    this.#socket.close(1000);
  }

  #send(action: number, value: unknown): number {
    if (this.#error) throw this.#error;
    if (!Number.isInteger(action) || action < -0x8000 || action > 0xffff) throw new ActionError('invalid_argument', `action ${action} has no 16 bits`);
    let body: Uint8Array;
    try {
      body = this.#codec.encode(value);
    } catch (e) {
      throw new ActionError('invalid_argument', `cannot encode action ${action}`, e);
    }
    if (8 + body.length > (this.#options.maxFrame ?? 65_536)) throw new ActionError('invalid_argument', `a packet of ${8 + body.length} bytes is too long`);
    if (this.#calls.size > 0xffff) throw new ActionError('resource_exhausted', 'all sequence numbers are in use');
    if (this.#socket.bufferedAmount > (this.#options.maxBuffered ?? 1 << 20)) throw new ActionError('resource_exhausted', 'the server does not read: too much waits to be sent');
    do this.#seq = this.#seq + 1 & 0xffff;
    while (this.#calls.has(this.#seq));
    const packet = new Uint8Array(4 + body.length), head = new DataView(packet.buffer);
    head.setUint16(0, action & 0xffff);
    head.setUint16(2, this.#seq);
    packet.set(body, 4);
    this.#socket.send(packet);
    return this.#seq;
  }

  #received(data: unknown): void {
    if (!(data instanceof ArrayBuffer) || data.byteLength < 4) return; // no packet
    const head = new DataView(data), action = head.getInt16(0), seq = head.getUint16(2), body = new Uint8Array(data, 4);
    const call = this.#calls.get(seq);
    if (call?.action === action) return call.end(body);
    this.#options.onPush?.({ action, seq: head.getInt16(2), value: this.#codec.decode(body) });
  }
}

// arpc (github.com/arpc-go/arpc), MIT license

/** What went wrong: the time was up, the caller gave up, there is no connection (any more), a limit was reached, or a value does not fit. */
export type ActionCode = 'deadline_exceeded' | 'canceled' | 'unavailable' | 'resource_exhausted' | 'invalid_argument';
/** How a call or a connection fails. */
export declare class ActionError extends Error {
    readonly code: ActionCode;
    constructor(code: ActionCode, message: string, cause?: unknown);
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
    addEventListener(type: 'message', listener: (e: {
        data: unknown;
    }) => void): void;
    addEventListener(type: 'close', listener: (e: {
        code: number;
        reason: string;
    }) => void): void;
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
/** One connection to an instance of extension/action. It does not connect again. */
export declare class ActionClient {
    #private;
    /** Resolves when the connection is over, with why. */
    readonly closed: Promise<ActionError>;
    private constructor();
    /** Connects to a URL such as ws://localhost:8082/. */
    static connect(url: string, options?: ActionOptions): Promise<ActionClient>;
    /** Sends a request and resolves with the value of the reply. A request that the server refuses ends with its time. */
    call<T = unknown>(action: number, value?: unknown, options?: ActionCallOptions): Promise<T>;
    /** Sends a request whose reply, if there is one, goes to onPush. */
    send(action: number, value?: unknown): void;
    /** Closes the connection; calls in flight fail. */
    close(): void;
}

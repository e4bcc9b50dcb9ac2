// arpc (github.com/arpc-go/arpc), MIT license

type State = 'connecting' | 'open' | 'reconnecting' | 'closed';

/** Times are in milliseconds, sizes in bytes. */
interface ClientOptions {
    /** For values that are neither bytes nor strings; default JSON. */
    codec?: Codec;
    /** Returns credentials, for each connection and each authenticate(); they are sent before anything else. */
    token?: () => string | Uint8Array | PromiseLike<string | Uint8Array>;
    /** After that long a connection is authenticated again, with a new token. Default: never. */
    refreshAfter?: number;
    /** How to connect again, or false: the client is closed when its connection is lost. */
    reconnect?: Reconnect | false;
    /** How many calls, notifications and streams may wait while there is no connection; more, by default all, fail at once. */
    queue?: number;
    /** Runs after each connect, before what waits is sent: for subscriptions that the server forgets with a connection. */
    onConnect?: (client: Client) => unknown;
    /** A constructor of WebSockets where there is no global one. */
    WebSocket?: new (url: string, protocols?: string | string[]) => WebSocketLike;
    /** Subprotocols to offer. */
    protocols?: string | string[];
    /** The time of a call that is given none; default 60,000. Infinity is no limit. */
    timeout?: number;
    /** Sent with every call, notification and stream. */
    metadata?: Metadata;
    /** When nothing arrives for timeout, default 90,000, the connection is given up; the peer is pinged each interval, default 30,000. */
    keepalive?: {
        interval?: number;
        timeout?: number;
    } | false;
    /** The time in which a connection must be open, agreed on and authenticated; default 10,000. */
    handshake?: number;
    /** The highest version of the protocol that is offered; default 2. */
    version?: 1 | 2;
    /** What the server may send. */
    limits?: {
        /** The longest body of a frame and message of a stream; default 64 MiB. */
        body?: number;
        /** Metadata of a message, default 16 KiB. */
        metadata?: number;
        /** What may wait to be received: of a stream, default 256 KiB, and of all together, default 4 MiB. */
        streamWindow?: number;
        streamWindows?: number;
        /** Streams that the server may have open; default 1024. */
        streams?: number;
    };
}

interface NotifyOptions {
    metadata?: Metadata;
    as?: As;
}

interface StreamOptions extends NotifyOptions {
    /** Ends it when aborted; the peer is told. */
    signal?: AbortSignal | undefined;
    /** Milliseconds after which it ends. Of a call, default ClientOptions.timeout; of a stream, none. */
    timeout?: number;
}

interface CallOptions extends StreamOptions {
    /** Gets the metadata of the answer. */
    onMetadata?: (metadata: Metadata) => void;
}

interface HandleOptions {
    as?: As;
}

/** The events of a client and what their listeners get. */
interface ClientEvents {
    open: [];
    /** The connection is lost, or is given up because the peer drains; why. */
    close: [ArpcError];
    /** An attempt to connect, a notification's handler, onConnect or a refresh of the token has failed. */
    error: [ArpcError];
    state: [State];
    /** An attempt will be made in delay milliseconds. */
    reconnect: [{
        attempt: number;
        delay: number;
    }];
}

/** A client of an arpc server, which may call it back. It connects at once. */
declare class Client {
    readonly codec: Codec;
    /** url is that of a WebSocket; one of http and, in a page, a relative one are understood as well. */
    constructor(url: string, options?: ClientOptions);
    /** What the connection is doing. */
    get state(): State;
    /**
     * Calls a method of the server. It rejects with an ArpcError: the server's, one of Code.DeadlineExceeded after the timeout, of
     * Code.Canceled after the signal, of Code.Unavailable without a connection.
     */
    call(route: string, value: unknown, options: CallOptions & {
        as: 'bytes';
    }): Promise<Uint8Array>;
    call(route: string, value: unknown, options: CallOptions & {
        as: 'text';
    }): Promise<string>;
    call<Res = unknown>(route: string, value?: unknown, options?: CallOptions): Promise<Res>;
    /**
     * Sends without waiting for an answer, at most once. It returns false if there is no connection, and nothing is sent; it
     * throws when the message cannot be sent at all.
     */
    notify(route: string, value?: unknown, options?: NotifyOptions): boolean;
    /** Opens a stream. The server learns of it by the first message, closeSend() or next(). */
    stream<In = unknown, Out = unknown>(route: string, options?: StreamOptions): Promise<Stream<In, Out>>;
    /**
     * Answers the server's calls of a route, and takes its notifications. It throws if the route has a handler, and returns a
     * function that removes this one.
     */
    handle<Req = unknown, Res = unknown>(route: string, handler: Handler<Req, Res>, options?: HandleOptions): () => void;
    /** Takes the streams that the server opens on a route; see handle. */
    handleStream<In = unknown, Out = unknown>(route: string, handler: StreamHandler<In, Out>, options?: HandleOptions): () => void;
    /** Calls f at each event; returns a function that ends this. */
    on<K extends keyof ClientEvents>(event: K, f: (...args: ClientEvents[K]) => void): () => void;
    /** Authenticates the connection again, with a new token. If the server refuses, it closes the connection. */
    authenticate(): Promise<void>;
    /** Closes the client for good. What waits fails with Code.Unavailable. */
    close(reason?: string): void;
}

/** Turns values into bytes and back. */
interface Codec {
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
type As = 'json' | 'text' | 'bytes' | Codec;

/** The default codec. As that, it takes a payload which is no JSON for a text: Go programs send strings so. */
declare const json: Codec;

/** Sends bytes and texts as they are, and receives bytes. As the codec of a client it refuses other values. */
declare const bytes: Codec;

/** The codec of an As, for what carries values within payloads of its own; codec is the client's. */
declare function form(as: As | undefined, codec: Codec): Codec;

/** What kind of error it is. The numbers and meanings are gRPC's; peers may agree on others of up to 255. Code[n] is a name. */
declare enum Code {
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
    Unauthenticated = 16
}

/** A further value of an error, under a name that both ends know. */
interface Detail {
    name: string;
    value: unknown;
    /** Of an error that came from the peer: the value's encoding. */
    bytes?: Uint8Array;
}

/** How a call, a stream or a connection fails. */
declare class ArpcError extends Error {
    readonly code: Code;
    readonly details: readonly Detail[];
    /** Whether the peer decided, not this side. */
    readonly remote: boolean;
    constructor(code: Code, message: string, options?: {
        details?: readonly Detail[];
        remote?: boolean;
        cause?: unknown;
    });
}

/** What a connection needs of a WebSocket; that of browsers and of Node have it, and the one of the package ws. */
interface WebSocketLike {
    binaryType: string;
    readonly readyState: number;
    readonly bufferedAmount: number;
    onopen: unknown;
    onmessage: unknown;
    onclose: unknown;
    onerror: unknown;
    send(data: ArrayBuffer): void;
    close(code?: number, reason?: string): void;
}

/**
 * Small pairs that travel with a call, notification or stream, or with an answer. A key has 1 to 255 bytes. A value is a text,
 * or bytes where it is not UTF-8. Peers of version 1 of the protocol do not get them.
 */
type Metadata = Record<string, string | Uint8Array>;

/** Times in milliseconds. */
interface Reconnect {
    /** The first wait, default 200. */
    min?: number;
    /** The longest, default 10,000. Each is twice as long as the one before. */
    max?: number;
    /** The part of each that is random, 0 to 1, so that not all clients come back at once; default 0.5. */
    jitter?: number;
}

/** What a handler knows beside the value. */
interface Context {
    readonly client: Client;
    readonly route: string;
    /** Aborted when the caller cancels, when its deadline has passed and when the connection ends; its reason is an ArpcError. */
    readonly signal: AbortSignal;
    /** What the caller sent beside the value. */
    readonly metadata: Metadata;
    /** When the caller stops waiting, in milliseconds since 1970 by this side's clock. */
    readonly deadline?: number | undefined;
    /** Whether it is a notification, which has no answer. */
    readonly isNotify: boolean;
    /** The payload. */
    readonly body: Uint8Array;
    /** Adds a pair to what is sent with the answer. */
    setMetadata(key: string, value: string | Uint8Array): void;
}

/** Answers a request by what it returns, or by the error that it throws. */
type Handler<Req, Res> = (value: Req, ctx: Context) => Res | PromiseLike<Res>;

/** What a stream handler knows beside the stream. */
interface StreamContext {
    /** Aborted when the stream is over, with the reason. */
    readonly signal: AbortSignal;
    /** What the peer sent when it opened the stream. */
    readonly metadata: Metadata;
    /** When the stream ends at the latest, in milliseconds since 1970 by this side's clock. */
    readonly deadline?: number | undefined;
}

/** Runs for each stream that the peer opens. The stream ends when it returns, or with the error that it throws. */
type StreamHandler<In, Out> = (stream: Stream<In, Out>, ctx: StreamContext) => unknown;

/**
 * A stream. `for await` receives its messages; leaving the loop early resets a stream that this end has opened, as others end with
 * their handler; next() takes a single one. A sender waits while the other end has not received enough.
 */
declare class Stream<In = unknown, Out = unknown> implements AsyncIterable<In>, AsyncIterator<In, undefined> {
    readonly route: string;
    /** Aborted when the stream is over, with the reason. */
    get signal(): AbortSignal;
    /** What the peer sent beside its messages: with the first if it opened the stream, else with any. */
    get metadata(): Metadata;
    /** Adds a pair to what the handler of a stream sends with its next message. Later than that it throws. */
    setMetadata(key: string, value: string | Uint8Array): void;
    [Symbol.asyncIterator](): this;
    /** Receives the next message. It rejects with the error with which the stream has ended. */
    next(): Promise<IteratorResult<In, undefined>>;
    /** Ends the stream that this end has opened, unless it has ended; that of a handler ends with the handler's answer or error. */
    return(): Promise<IteratorResult<In, undefined>>;
    /** Sends a message, after those before it; resolves when it was handed to the connection, which may have to wait for credit. */
    send(value: Out): Promise<void>;
    /** Sends a message if that needs not wait, otherwise returns false. It throws when the stream is closed. */
    trySend(value: Out): boolean;
    /** Says that this end sends no more, after what it has sent. */
    closeSend(): Promise<void>;
    /** Ends the stream in both directions with an error, which the peer gets, and drops what was not received. */
    reset(error?: unknown): void;
}

export { Client, bytes, form, json, ArpcError, Code };
export type { CallOptions, ClientEvents, ClientOptions, HandleOptions, NotifyOptions, State, StreamOptions, As, Codec, Detail, WebSocketLike, Metadata, Reconnect, Context, Handler, Stream, StreamContext, StreamHandler };

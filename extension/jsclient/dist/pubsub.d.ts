// arpc (github.com/arpc-go/arpc), MIT license

import type { Client, ArpcError, CallOptions, As } from './arpc.js';

interface PubSubOptions {
    /** What Go's Server.Password wants to hear. It is told on each connection, before anything else. */
    password?: string;
}

interface PublishOptions extends Publication, CallOptions {
}

/** What part of a topic's history is wanted. */
interface HistoryOptions extends CallOptions {
    /** Begins after a place; without it the last messages are wanted. */
    from?: Position | undefined;
    /** The largest number of messages, the first ones after from; 0, the default, for all that are kept, negative for none, only top. */
    limit?: number;
}

/** A part of a topic's history. */
interface Page<T = unknown> {
    /** In the order of their offsets. The server may leave out what does not fit into one answer: then the last one is before top. */
    messages: Message<T>[];
    /** The place after the last message of the topic; undefined if it has no history. */
    top: Position | undefined;
    /** from is a place in the epoch of top, and nothing is missing between it and the last message, or top if limit has cut nothing. */
    complete: boolean;
}

/**
 * Publishes and subscribes on a client's connection, and on those that come after it: subscriptions go on from where they were. A
 * client has one PubSub at a time.
 */
declare class PubSub {
    readonly client: Client;
    constructor(client: Client, options?: PubSubOptions);
    /**
     * Subscribes to a topic, or to all topics that match a pattern: words that dots separate, of which * stands for any one and a last
     * > for any one or more. Without a connection it waits for one.
     */
    subscribe<T = unknown>(topic: string, options?: SubscribeOptions): Subscription<T>;
    /**
     * Publishes a value to a topic; when it resolves, the server's engine has it. After an error that is not the server's it is not
     * known whether it was published: with an id it can be repeated.
     */
    publish(topic: string, value: unknown, options?: PublishOptions): Promise<Receipt>;
    /** Who is present at a topic, in no order. */
    members(topic: string, options?: CallOptions): Promise<Member[]>;
    /** What a topic has kept. */
    history<T = unknown>(topic: string, options?: HistoryOptions): Promise<Page<T>>;
    /** Ends all subscriptions, and leaves the client to another PubSub. */
    close(): void;
}

/**
 * What happens to a message when as many wait as may, at the server while the connection is full and here while the loop is busy:
 *
 * - 'drop_oldest', the default: what has waited longest is dropped
 * - 'drop_newest': the new message is dropped
 * - 'conflate': at any length, what waits with the same topic and key is dropped, and not counted as lost; at the bound the oldest
 * - 'disconnect': the server closes the connection; here, the server is told to stop. When the loop has taken what waits, the
 *   subscription goes on from there, and recovers what the topic has kept
 */
type Policy = 'drop_oldest' | 'drop_newest' | 'conflate' | 'disconnect';

/** A subscription has begun, or has begun again. */
interface Subscribed {
    kind: 'subscribed';
    /** It has begun at a place that was known: that of from, or where it was when its connection was lost. */
    resumed: boolean;
    /**
     * Nothing is missing between that place and what follows. With resumed and without recovered there may be a gap: what the
     * messages stand for must be read anew. It is never true where something is missing.
     */
    recovered: boolean;
    /** The place before the first message that follows; undefined without history. */
    position: Position | undefined;
}

/**
 * What happens to a subscription beside messages.
 *
 * - 'subscribed': see Subscribed
 * - 'lost': the policy has dropped so many messages, or joins and leaves
 * - 'joined', 'left': somebody has come, or has gone
 * - 'interrupted': the server has lost its engine; 'subscribed' follows when it is back
 * - 'malformed': a message could not be decoded, and is not in the loop
 */
type SubscriptionEvent = Subscribed | {
    kind: 'lost';
    count: number;
} | {
    kind: 'joined';
    member: Member;
} | {
    kind: 'left';
    member: Member;
} | {
    kind: 'interrupted';
    error: ArpcError;
} | {
    kind: 'malformed';
    error: ArpcError;
    message: Message<undefined>;
};

/** Sizes are in bytes. */
interface SubscribeOptions {
    /** Begins after a place in the topic's history, such as that of the last message which was dealt with before the page was reloaded. */
    from?: Position | undefined;
    /** Begins with the last so many messages of the topic's history. */
    last?: number;
    /** Makes it one of a group: each message goes to one subscription of it, of all connections to all servers. A group has no history. */
    group?: string;
    /** Default 'drop_oldest'. */
    policy?: Policy;
    /**
     * How many messages may wait here; what arrives together counts together. Default 10,000. If given, as many may wait at the
     * server, within its own limit.
     */
    queue?: number;
    /** How much may wait here, default 16 MiB. */
    queueBytes?: number;
    /** Asks for the events 'joined' and 'left'. The topic must have presence. */
    presence?: boolean;
    /** Makes the subscription a member of its topic, and is what it says about itself: any JSON. */
    join?: unknown;
    /** The form of the values; see As. */
    as?: As;
    /** Ends the subscription when aborted: the loop throws. */
    signal?: AbortSignal | undefined;
    /**
     * Gets what happens beside messages, in its place between them: the loop goes on when a promise that it returns is settled, and
     * throws what it throws. Without a loop it gets nothing.
     */
    onEvent?: (event: SubscriptionEvent) => unknown;
}

/** What a subscription has counted. */
interface SubscriptionStats {
    /** Messages that have arrived, each once. */
    received: number;
    /** What waits for the loop. */
    waiting: number;
    /** What was dropped at the server. */
    lost: number;
    /** What was dropped here. */
    dropped: number;
    /** What was replaced here by something newer with its key. */
    conflated: number;
}

/** A subscription, which is received by for await. The loop ends with the subscription, and the subscription with the loop. */
declare class Subscription<T = unknown> implements AsyncIterable<Message<T>> {
    readonly topic: string;
    /** Settled when the server has answered; rejected if it refuses, or when the subscription ends before that. */
    readonly ready: Promise<void>;
    /** The ID as a member of the topic, which each connection has anew; undefined without join. */
    member: string | undefined;
    /** The place after the last message that the loop has got; undefined without history. A later from goes on from there. */
    position: Position | undefined;
    get stats(): SubscriptionStats;
    /** Ends the subscription, and its loop: what waits is discarded. */
    unsubscribe(): void;
    [Symbol.asyncIterator](): AsyncGenerator<Message<T>, void, void>;
}

/** A place in a topic: after the message that has it. Messages of topics without history have none. */
interface Position {
    /** Tells one life of a topic's history from the next: offsets of different epochs cannot be compared. */
    epoch: number;
    /** Grows from message to message. */
    offset: number;
}

/** Who is present at a topic. */
interface Member {
    /** Unique among all members. */
    id: string;
    /** What the member says about itself; undefined for nothing. */
    info: unknown;
}

/** A message of a topic. */
interface Message<T = unknown> {
    /** Where it was published; for a subscription with a pattern, a topic that matches. */
    topic: string;
    /** What was published, decoded as the subscription's as says. */
    value: T;
    /** The bytes of that. */
    data: Uint8Array;
    /** What a newer message replaces it by, or ''. */
    key: string;
    /** When the server got it, by its clock, in milliseconds since 1970. */
    timestamp: number;
    /** Where it is in its topic; undefined without history. */
    position: Position | undefined;
    /** One subscriber gets it. */
    toOne: boolean;
}

interface Publication {
    /** What a newer message replaces it by where subscribers ask for that, see Policy. At most 255 bytes. */
    key?: string;
    /**
     * Of the publications with one ID to one topic within a short while only the first counts, so that one whose outcome is not known
     * can be repeated. At most 255 bytes.
     */
    id?: string;
    /** One subscriber gets it, if there is one, and it is not kept in the history. */
    toOne?: boolean;
}

/** What a publisher gets. */
interface Receipt {
    /** That of the message; undefined on a topic without history. */
    position: Position | undefined;
    /** A message with that ID had been published before: position is its, and nothing was published now. */
    duplicate: boolean;
}

export { PubSub };
export type { HistoryOptions, Page, PublishOptions, PubSubOptions, Policy, Subscribed, SubscriptionEvent, SubscribeOptions, Subscription, SubscriptionStats, Member, Message, Position, Publication, Receipt };

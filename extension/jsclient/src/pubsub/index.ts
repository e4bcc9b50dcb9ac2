// arpc: publish and subscribe, beside the client.

export { PubSub } from './pubsub.js';
export type { HistoryOptions, Page, PublishOptions, PubSubOptions } from './pubsub.js';
export type { Policy, Subscribed, SubscriptionEvent } from './queue.js';
export type { SubscribeOptions, Subscription, SubscriptionStats } from './subscription.js';
export type { Member, Message, Position, Publication, Receipt } from './wire.js';

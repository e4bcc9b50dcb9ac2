// The types of publish and subscribe.

import { Client, type ArpcError } from '@arpc-go/arpc';
import { PubSub, type Member, type Message, type Page, type Policy, type Position, type Receipt, type SubscribeOptions, type Subscription, type SubscriptionEvent } from '@arpc-go/arpc/pubsub';

interface Price { symbol: string; price: number }

export async function use(client: Client, kept?: Position): Promise<void> {
  const pubsub = new PubSub(client, { password: 'x' });
  const policy: Policy = 'conflate';
  const options: SubscribeOptions = { from: kept, last: 3, policy, queue: 5, queueBytes: 1000, presence: true, join: { name: 'me' }, signal: AbortSignal.timeout(5) };
  const sub: Subscription<Price> = pubsub.subscribe<Price>('prices.*', {
    ...options,
    onEvent: async (e: SubscriptionEvent) => {
      if (e.kind === 'subscribed') e.recovered && e.resumed satisfies boolean;
      else if (e.kind === 'lost') e.count.toFixed();
      else if (e.kind === 'joined' || e.kind === 'left') e.member.id.length;
      else e.error satisfies ArpcError;
    },
  });
  await sub.ready;
  for await (const m of sub) {
    const all: Message<Price> = m;
    all.value.price.toFixed();
    new Date(m.timestamp);
    kept = m.position;
  }
  sub.stats.waiting.toFixed();
  sub.position satisfies Position | undefined;
  sub.member satisfies string | undefined;
  sub.unsubscribe();
  const r: Receipt = await pubsub.publish('prices.a', { price: 1 }, { id: '1', key: 'a', timeout: 1000, as: 'json' });
  r.position?.offset.toFixed();
  const members: Member[] = await pubsub.members('room');
  const page: Page<Price> = await pubsub.history<Price>('prices.a', { from: r.position, limit: 5 });
  page.messages[0]?.value.symbol.length;
  void members;
  pubsub.close();

  // @ts-expect-error there is no such policy
  pubsub.subscribe('x', { policy: 'never' });
  // @ts-expect-error not for users
  sub.ask;
  // @ts-expect-error only PubSub makes them
  new Subscription();
}

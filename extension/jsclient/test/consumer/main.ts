// A program that uses the package, checked by tsc --strict under several settings; it is not run.

import {
  ArpcError, bytes, Client, Code, json, type As, type CallOptions, type ClientOptions, type Codec, type Context, type Detail, type Handler,
  type Metadata, type Reconnect, type State, type Stream, type StreamContext, type StreamHandler, type WebSocketLike,
} from '@arpc-go/arpc';

interface User { id: number; name: string }

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const is = <A, B>(_: Equal<A, B>): void => {};

export async function use(WebSocketOfMine: new (url: string, protocols?: string | string[]) => WebSocketLike): Promise<void> {
  const options: ClientOptions = {
    token: async () => 'token', refreshAfter: 60_000, reconnect: { min: 100, max: 5000, jitter: 1 }, queue: 10, timeout: 5000,
    onConnect: async (c) => {
      await c.call('/subscribe');
    },
    WebSocket: WebSocketOfMine, protocols: ['arpc'], metadata: { app: 'x' }, keepalive: false, limits: { streams: 1 },
  };
  const client = new Client('/ws', options);
  is<State, typeof client.state>(true);

  const user = await client.call<User>('/user', { id: 1 }, { timeout: 1000, signal: AbortSignal.timeout(500), onMetadata: (md) => md['k'] });
  is<User, typeof user>(true);
  const unknown = await client.call('/user');
  is<unknown, typeof unknown>(true);
  const raw = await client.call('/user', null, { as: 'bytes' });
  raw.byteLength satisfies number;
  const text = await client.call('/user', null, { as: 'text' });
  is<string, typeof text>(true);
  client.notify('/n', new Uint8Array(1)) satisfies boolean;

  const remove: () => void = client.handle<User, string>('/name', async (u, ctx) => {
    ctx.signal.throwIfAborted();
    ctx.setMetadata('a', 'b');
    if (!u.id) throw new ArpcError(Code.NotFound, 'nobody', { details: [{ name: 'id', value: u.id }] });
    return u.name;
  }, { as: 'json' });
  remove();

  const s: Stream<User, number> = await client.stream<User, number>('/users', { as: 'json' });
  await s.send(1);
  s.trySend(2) satisfies boolean;
  for await (const u of s) u.name satisfies string;
  const r = await s.next();
  if (!r.done) r.value.id satisfies number;
  await s.closeSend();
  s.reset(new Error('no'));
  const onStream: StreamHandler<string, User> = async (s: Stream<string, User>, ctx: StreamContext) => {
    for await (const m of s) if (!ctx.signal.aborted) await s.send({ id: 1, name: m });
  };
  client.handleStream('/s', onStream);

  const off = client.on('reconnect', ({ attempt, delay }) => attempt + delay);
  client.on('close', (e) => e.code === Code.Unavailable && e.message.length);
  off();
  try {
    await client.authenticate();
  } catch (e) {
    if (e instanceof ArpcError) {
      const d: readonly Detail[] = e.details;
      Code[e.code] satisfies string | undefined;
      void d;
    }
  }
  client.close('done');

  // @ts-expect-error a stream of numbers
  await s.send('x');
  // @ts-expect-error there is no such event
  client.on('nothing', () => {});
  // @ts-expect-error a metadata value is a text or bytes
  await client.call('/x', 1, { metadata: { a: 1 } });
  // @ts-expect-error there is no such form
  await client.call('/x', 1, { as: 'xml' });
  // @ts-expect-error not for users
  client.links;
}

export const mine: Codec = { name: 'mine', encode: (v) => json.encode(v), decode: (b) => bytes.decode(b) };
export const as: As[] = ['json', 'text', 'bytes', mine];
export const h: Handler<unknown, void> = (_, ctx: Context) => void ctx.deadline?.toFixed();
export const more: [CallOptions, Reconnect, Metadata] = [{}, {}, { a: 'b', c: new Uint8Array() }];

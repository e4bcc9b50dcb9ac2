// The TypeScript side of TestTypeScriptPeer: it calls a Room and offers one, in all shapes of methods.

import { ArpcError, Code, type Client } from '@arpc-go/arpc';
import { handleRoom, RoomClient, type RoomHandler } from '../chat/chat_arpc.js';

/** Does everything. It rejects when something is not as it must be. */
export async function run(client: Client): Promise<void> {
  await calls(client);
  await offers(client);
  await offersOnce(client);
}

function equal(what: string, got: unknown, want: unknown): void {
  const text = (v: unknown) => JSON.stringify(v, (k, w: unknown) => (k === '$typeName' ? undefined : w));
  if (text(got) !== text(want)) throw new Error(`${what}: ${text(got)}, want ${text(want)}`);
}

async function fails(what: string, code: Code, remote: boolean, f: () => Promise<unknown>): Promise<ArpcError> {
  let got: unknown;
  try {
    got = await f();
  } catch (e) {
    if (!(e instanceof ArpcError)) throw e;
    equal(what, [Code[e.code], e.remote], [Code[code], remote]);
    return e;
  }
  throw new Error(`${what} does not fail: ${JSON.stringify(got)}`);
}

async function calls(client: Client): Promise<void> {
  const room = new RoomClient(client);

  // The metadata shows that options reach the call. What they say of the codec does not matter.
  equal('join', await room.join({}, { metadata: { name: 'Ada' }, as: 'text' }), { greeting: 'hello Ada' });
  await fails('join that is refused', Code.PermissionDenied, true, () => room.join({}, { metadata: { name: 'Eve' } }));

  const lines: string[] = [];
  for await (const line of await room.history({ lines: 3 })) lines.push(line.from + line.text);
  equal('history', lines, ['go0', 'go1', 'go2']);
  equal('no history', await (await room.history({})).next(), { done: true });
  await fails('history that fails', Code.InvalidArgument, true, async () => {
    for await (const _ of await room.history({ lines: -1 }));
  });
  const stop = new AbortController(), endless = await room.history({ lines: 1e6 }, { signal: stop.signal });
  await endless.next();
  stop.abort();
  await fails('history that is aborted', Code.Canceled, false, async () => {
    for await (const _ of endless);
  });

  const sending = await room.import();
  for (const text of ['a', 'b', '']) await sending.send(text ? { text } : {});
  equal('import', await sending.closeAndReceive(), { lines: 3 });
  equal('import of nothing', await (await room.import()).closeAndReceive(), { lines: 0 });
  const refused = await room.import();
  await refused.send({ text: 'bad' });
  await fails('import that fails', Code.InvalidArgument, true, () => refused.closeAndReceive());
  // The answer counts even if it comes before the last message.
  const early = await room.import();
  await early.send({ text: 'enough' });
  while (!early.signal.aborted) await client.call('/echo');
  equal('early answer', await early.closeAndReceive(), { lines: 1 });

  const talk = await room.talk();
  for (const text of ['a', '', 'c']) {
    await talk.send({ text });
    equal('talk', (await talk.next()).value, { from: 'go', text });
  }
  await talk.closeSend();
  equal('the end', await talk.next(), { done: true });

  // What the types do not allow, from a peer that has others.
  await fails('a malformed request', Code.InvalidArgument, true, () => client.call('/chat.v1.Room/Join', Uint8Array.of(255), { as: 'bytes' }));
  await fails('a value that cannot be encoded', Code.InvalidArgument, false, () => room.history({ lines: 'x' as never }));
  const malformed = await fails('a malformed answer', Code.Internal, false, () => room.join({}, { metadata: { name: 'garbage' } }));
  if (!malformed.message.startsWith('malformed chat.v1.JoinReply: ')) throw malformed;
}

const impl: RoomHandler = {
  join(_request, { metadata }) {
    if (metadata['name'] === 'Eve') throw new ArpcError(Code.PermissionDenied, 'not you');
    return { greeting: `hello ${metadata['name']}` };
  },
  async history({ lines }, stream) {
    if (lines < 0) throw new ArpcError(Code.InvalidArgument, 'that few');
    for (let i = 0; i < lines; i++) await stream.send({ from: 'ts', text: `${i}` });
  },
  async import(stream) {
    let lines = 0;
    for await (const { text } of stream) {
      lines++;
      if (text === 'bad') throw new ArpcError(Code.InvalidArgument, 'bad line');
      if (text === 'enough') break;
    }
    return { lines };
  },
  async talk(stream) {
    for await (const { text } of stream) await stream.send({ from: 'ts', text });
  },
};

/** Has the server call this side: /back answers when it has, or with what is wrong. */
async function offers(client: Client): Promise<void> {
  const end = handleRoom(client, impl);
  await client.call('/back');
  end();
  end();
  await client.call('/none');
}

/** Either all methods are taken or none. */
async function offersOnce(client: Client): Promise<void> {
  const taken = client.handleStream('/chat.v1.Room/Talk', () => {});
  await fails('a method that is taken', Code.AlreadyExists, false, async () => handleRoom(client, impl));
  await client.call('/none'); // it asks for Join
  taken();
  const end = handleRoom(client, impl);
  await fails('the second time', Code.AlreadyExists, false, async () => handleRoom(client, impl));
  await client.call('/back'); // still answered by the first
  end();
}

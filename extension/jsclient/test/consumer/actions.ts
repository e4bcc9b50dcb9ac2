// The client of extension/action, as a page or Node uses it.

import { ActionClient, ActionError, type ActionPush } from '@arpc-go/arpc/action';

interface Greeting {
  text: string;
}

export async function greet(url: string): Promise<Greeting | undefined> {
  const client = await ActionClient.connect(url, { timeout: 5000, onPush: (p: ActionPush) => console.log(p.action, p.seq, p.value) });
  try {
    client.send(2, { seen: true });
    return await client.call<Greeting>(1, { name: 'world' }, { signal: AbortSignal.timeout(1000) });
  } catch (e) {
    if (e instanceof ActionError && e.code === 'deadline_exceeded') return undefined;
    throw e;
  } finally {
    client.close();
  }
}

/** Where the global WebSocket is not to be used. */
export const other = (url: string, WebSocket: typeof globalThis.WebSocket): Promise<ActionClient> => ActionClient.connect(url, { WebSocket });

// Runs peer.ts against the server whose URL is the argument.
import { Client } from '@arpc-go/arpc';
import { WebSocket } from 'ws';
import { run } from './peer.ts';

const client = new Client(process.argv[2], { WebSocket, timeout: 30_000 });
try {
  await run(client);
} catch (e) {
  console.error(e);
  process.exitCode = 1;
}
client.close();

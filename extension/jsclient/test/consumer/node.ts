import { Client } from '@arpc-go/arpc';
import { WebSocket } from 'ws';
export const b = new Client('ws://localhost', { WebSocket });

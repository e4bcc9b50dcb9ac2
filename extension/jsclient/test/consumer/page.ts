// The WebSockets of browsers and of the package ws fit.

import { Client } from '@arpc-go/arpc';
export const a = new Client('ws://localhost', { WebSocket });

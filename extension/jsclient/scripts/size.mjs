// Fails when an ES module has grown beyond its limit.

import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

for (const [name, limit] of [['arpc.mjs', 9 * 1024], ['pubsub.mjs', 3.75 * 1024], ['action.mjs', 2 * 1024]]) {
  const code = readFileSync(new URL('../dist/' + name, import.meta.url));
  const size = gzipSync(code, { level: 9 }).length;
  console.log(`dist/${name}: ${code.length} bytes, ${size} gzipped, limit ${limit}`);
  if (size > limit) process.exitCode = 1;
}

// Fails when the ES module has grown beyond its limit.

import { readFileSync } from 'node:fs';
import { gzipSync } from 'node:zlib';

const limit = 9 * 1024;
const code = readFileSync(new URL('../dist/arpc.mjs', import.meta.url));
const size = gzipSync(code, { level: 9 }).length;
console.log(`dist/arpc.mjs: ${code.length} bytes, ${size} gzipped, limit ${limit}`);
if (size > limit) process.exit(1);

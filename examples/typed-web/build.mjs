// Bundles the page: page/app.ts and what it imports become page/app.js. With --check it only reports whether that is stale. The
// client is not in it, so that the bundle need not be made again when the client changes: the server has arpc.mjs embedded.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';

const root = import.meta.dirname, out = join(root, 'page/app.js');
const { outputFiles: [bundle] } = await build({
  absWorkingDir: root, entryPoints: ['page/app.ts'], outfile: out, write: false,
  bundle: true, minify: true, format: 'esm', target: 'es2022', charset: 'utf8', legalComments: 'none',
  alias: { '@arpc-go/arpc': './arpc.mjs' }, external: ['./arpc.mjs'],
  banner: { js: '// Built from app.ts by npm run build, with @bufbuild/protobuf (Apache-2.0 and BSD-3-Clause) in it.' },
});
if (existsSync(out) && readFileSync(out, 'utf8') === bundle.text) process.exit(0);
if (process.argv.includes('--check')) {
  console.error('page/app.js is stale, run npm run build');
  process.exit(1);
}
writeFileSync(out, bundle.text);

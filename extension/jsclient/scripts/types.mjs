// Checks programs in test/consumer against the package as it would be installed: package.json and dist, nothing else.

import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dir = mkdtempSync(join(tmpdir(), 'arpc-consumer-'));
const installed = join(dir, 'node_modules/@arpc-go/arpc');
try {
  mkdirSync(join(dir, 'node_modules/@types'), { recursive: true });
  for (const name of ['ws', '@types/ws', '@types/node', 'undici-types']) symlinkSync(join(root, 'node_modules', name), join(dir, 'node_modules', name));
  for (const name of ['package.json', 'dist']) cpSync(join(root, name), join(installed, name), { recursive: true });
  cpSync(join(root, 'test/consumer'), dir, { recursive: true });
  writeFileSync(join(dir, 'package.json'), '{"type":"module"}');
  const shared = {
    strict: true, noEmit: true, target: 'es2022', noUncheckedIndexedAccess: true, exactOptionalPropertyTypes: true, isolatedModules: true,
    verbatimModuleSyntax: true,
  };
  for (const [files, options] of [
    [['main.ts', 'page.ts', 'topics.ts', 'actions.ts'], { module: 'esnext', moduleResolution: 'bundler', lib: ['es2022', 'dom'], types: [] }],
    [['main.ts', 'page.ts', 'topics.ts', 'actions.ts'], { module: 'nodenext', lib: ['es2022', 'dom'], types: [] }],
    [['main.ts', 'node.ts', 'topics.ts', 'actions.ts'], { module: 'nodenext', lib: ['es2022'], types: ['node'], skipLibCheck: true }],
  ]) {
    writeFileSync(join(dir, 'tsconfig.json'), JSON.stringify({ compilerOptions: { ...shared, ...options }, files }));
    execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', dir], { stdio: 'inherit' });
  }
  console.log('the types are right');
} finally {
  rmSync(dir, { recursive: true });
}

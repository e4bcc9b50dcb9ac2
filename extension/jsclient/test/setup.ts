// Builds what is tested: dist, and the Go server.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';

declare module 'vitest' {
  interface ProvidedContext {
    server: string;
  }
}

export default function setup(project: TestProject): () => void {
  const root = join(import.meta.dirname, '..');
  execFileSync(process.execPath, [join(root, 'scripts/build.mjs')], { stdio: 'inherit' });
  const dir = mkdtempSync(join(tmpdir(), 'arpc-js-')), server = join(dir, 'server');
  execFileSync('go', ['build', '-race', '-o', server, './test/server'], { cwd: root, env: { ...process.env, GOWORK: 'off' }, stdio: 'inherit' });
  project.provide('server', server);
  return () => rmSync(dir, { recursive: true });
}

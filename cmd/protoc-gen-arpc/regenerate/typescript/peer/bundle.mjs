// Bundles main.mjs with the packages of the example typed-web: node bundle.mjs <its node_modules> <output>

import { createRequire } from 'node:module';
import { join } from 'node:path';

const [modules, outfile] = process.argv.slice(2);
const { build } = createRequire(import.meta.url)(join(modules, 'esbuild'));
await build({
  absWorkingDir: import.meta.dirname, entryPoints: ['main.mjs'], outfile, nodePaths: [modules], tsconfigRaw: {},
  bundle: true, platform: 'node', format: 'esm', target: 'node20', logLevel: 'warning',
  // ws is not an ES module.
  banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
});

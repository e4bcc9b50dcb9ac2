// Builds dist: arpc.mjs, pubsub.mjs and action.mjs (ES modules), arpc.js (classic script), and the types. With --check it only reports whether they
// are stale.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(root, 'dist');
const check = process.argv.includes('--check');
const banner = '// arpc (github.com/arpc-go/arpc), MIT license';

// Members that nobody outside sees get short names. None may be a member of a standard object that the sources use, nor be
// in the declarations. Both are checked below, and the tests run against what is built here.
const internal = `addCredit again alive arrived backoff become begin bit buffered calls cancel check closing connect connected control
  controlFrame credentials credit current discard down drop emit end ended fail failAll failed farewell features fell
  finished fits flush forget frame gaveBack goAway going greeted handled heard hello inbox isOver last leaves left limit
  link links listeners lost matches mine more need none opened ours out outSize outbox over owed own partial parts patient
  payload peer phase piece pong pongs problem pull pump pumpOne pumping ready received receivers recvEnd recvError refresh
  refreshLater request requests response rest resume retry routes run sendCredit sendEnd sendError senders sentMetadata
  seq shut since socket splitter start startKeepalive streamRoutes takes theirs times unpaid unread until v2 waiting
  welcome window windows`.split(/\s+/);

// The same of pubsub.mjs, to which the core is another module: none may be in the declarations of either.
const internalOfPubSub = `accept accepted ask asking before begun behind bind byKey end first follows forget full got
  heard inbox items leave missed more most mostBytes note notes numbers onAbort over pause pubsub put quit refuse remove request rest
  resumes retry seen stale start stops string subs take tell told total uint wake wakes what why words`.split(/\s+/);

const shared = {
  absWorkingDir: root, bundle: true, minify: true, target: 'es2022', charset: 'utf8', write: false, sourcemap: 'external',
  tsconfig: join(root, 'tsconfig.json'), legalComments: 'none', banner: { js: banner }, outdir: 'dist',
};

async function bundle(entry, name, options) {
  const r = await build({ ...shared, ...options, entryPoints: [{ in: entry, out: name }] });
  return Object.fromEntries(r.outputFiles.map((f) => [f.path.slice(dist.length + 1), f.text]));
}

/** Runs tsc, and f with a function that reads one of the declaration files which that has written. */
function withDeclarations(f) {
  const tmp = mkdtempSync(join(tmpdir(), 'arpc-types-'));
  try {
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    execFileSync(process.execPath, [tsc, '-p', root, '--declaration', '--emitDeclarationOnly', '--outDir', tmp], { stdio: 'inherit' });
    return f(tmp);
  } finally {
    rmSync(tmp, { recursive: true });
  }
}

/** One declaration file of those in a directory, one for each source. What it takes from the core it imports. */
function declarations(dir, core) {
  const read = (f) => readFileSync(join(dir, f), 'utf8');
  const entry = read('index.d.ts');
  const exported = (re) => [...entry.matchAll(re)].flatMap((m) => m[1].split(',').map((n) => n.trim())).filter(Boolean);
  const values = exported(/export \{([^}]+)\} from/g), only = exported(/export type \{([^}]+)\}/g), names = [...values, ...only];
  // What the exported names need: declarations are taken in until nothing is missing.
  const blocks = new Map();
  for (const f of readdirSync(dir).filter((f) => f.endsWith('.d.ts') && !/^(index|classic)\./.test(f)).sort()) {
    const text = read(f).replace(/^import .*;\n/gm, '').replace(/^export \{\};\n/gm, '').replace(/^\/\/.*\n/gm, '');
    for (const block of text.split(/\n(?=\/\*\*)|(?<!\*\/)\n(?=export |declare |type |interface )/)) {
      const m = block.match(/^(?:\/\*\*[\s\S]*?\*\/\s*)?(?:export )?(?:declare )?(?:const enum|enum|abstract class|class|interface|type|const|function) (\w+)/);
      if (m) blocks.set(m[1], (blocks.has(m[1]) ? blocks.get(m[1]) + '\n' : '') + block.trim());
    }
  }
  const wanted = [...names];
  for (let i = 0; i < wanted.length; i++) {
    const code = (blocks.get(wanted[i]) ?? '').replace(/\/\*\*[\s\S]*?\*\/|\/\/.*$/gm, '');
    for (const other of blocks.keys()) {
      if (!wanted.includes(other) && !/^(export )?declare const \w+:/m.test(blocks.get(other)) && new RegExp(`(?<![.\\w])${other}\\b(?!\\??:)`).test(code)) wanted.push(other);
    }
  }
  const missing = names.filter((n) => !blocks.has(n));
  if (missing.length) throw new Error('no declaration of ' + missing.join(', '));
  const out = [...blocks].filter(([n]) => wanted.includes(n)).map(([n, b]) => {
    b = b.replace(/^(?: +\/\*\*(?:(?!\*\/)[\s\S])*\*\/\n)? +private .*\n/gm, '').replace(/^export /gm, '').replace(/^(?=(?:class|const|enum|function) )/gm, 'declare ');
    return b;
  }).join('\n\n');
  const used = (core ?? []).filter((n) => new RegExp(`(?<![.\\w])${n}\\b`).test(out.replace(/\/\*\*[\s\S]*?\*\//g, '')));
  const imports = core ? `import type { ${used.join(', ')} } from './arpc.js';\n\n` : '';
  const text = `${banner}\n\n${imports}${out}\n\nexport { ${values.join(', ')} };\nexport type { ${only.join(', ')} };\n`;
  return { text, names };
}

/** The pattern of the internal names; none may be in the declarations, or belong to a standard object. */
function mangled(names, types) {
  const visible = types.replace(/\/\*\*[\s\S]*?\*\//g, '').replace(/^\s*private .*$/gm, '');
  for (const name of names) {
    if (new RegExp(`\\b${name}\\??\\s*[:(<]`).test(visible)) throw new Error(`${name} is internal, but in the declarations`);
  }
  if (/\bany\b/.test(visible)) throw new Error('any in the declarations');
  const clash = standard.filter((name) => names.includes(name));
  if (clash.length) throw new Error(`internal names that standard objects have: ${clash.join(', ')}`);
  return new RegExp(`^(${names.join('|')})$`);
}

const standard = [
  AbortController, AbortSignal, Array, ArrayBuffer, BigInt, DataView, Error, EventTarget, Headers, JSON, Map, Math, Number, Object, Promise,
  Response, Set, TextDecoder, TextEncoder, URL, Uint8Array, Object.getPrototypeOf(Uint8Array), [][Symbol.iterator]().constructor,
].flatMap((o) => [o, o.prototype ?? {}]).flatMap((o) => Object.getOwnPropertyNames(o));

const [types, typesOfPubSub, typesOfAction] = withDeclarations((dir) => {
  const core = declarations(dir), action = readFileSync(join(dir, 'action.d.ts'), 'utf8');
  if (/^import /m.test(action)) throw new Error('src/action.ts is to need no other source');
  return [core.text, declarations(join(dir, 'pubsub'), core.names).text, `${banner}\n\n${action}`];
});

// The other module takes the core from the file beside it.
const external = {
  name: 'core',
  setup: (b) => b.onResolve({ filter: /^\.\.\/index\.js$/ }, () => ({ path: './arpc.mjs', external: true, sideEffects: false })),
};

const mangleProps = mangled(internal, types), esm = { format: 'esm', outExtension: { '.js': '.mjs' } };
const files = {
  ...(await bundle('src/index.ts', 'arpc', { ...esm, mangleProps })),
  ...(await bundle('src/classic.ts', 'arpc', { format: 'iife', mangleProps })),
  ...(await bundle('src/pubsub/index.ts', 'pubsub', { ...esm, mangleProps: mangled(internalOfPubSub, types + typesOfPubSub), plugins: [external] })),
  ...(await bundle('src/action.ts', 'action', esm)),
  'arpc.d.ts': types,
  'pubsub.d.ts': typesOfPubSub,
  'action.d.ts': typesOfAction,
};

const differs = (f) => !existsSync(join(dist, f)) || readFileSync(join(dist, f), 'utf8') !== files[f];
if (check) {
  const stale = Object.keys(files).filter((f) => !f.endsWith('.map') && differs(f));
  if (stale.length) {
    console.error(`stale, run npm run build: ${stale.join(', ')}`);
    process.exit(1);
  }
} else {
  mkdirSync(dist, { recursive: true });
  for (const name of Object.keys(files).filter(differs)) writeFileSync(join(dist, name), files[name]);
}

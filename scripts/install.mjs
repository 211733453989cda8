// Builds the addon when no prebuilt one loads. (Prerequisite checks: see scripts/prerequisites.mjs.)
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const require = createRequire(import.meta.url);
try {
  require('node-gyp-build')(root);
} catch {
  execFileSync('npx', ['--no-install', 'cmake-js', 'compile'], { cwd: root, stdio: 'inherit' });
}

// `npm test`: set-up, `npm run check`, then every vitest project. The last line is `N passed, N failed`, counted in tests, of
// which each step of the check is one; the exit code is 0 only if something ran and nothing failed. Arguments go to vitest.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { check } from './check.mjs';
import { setup } from './setup.mjs';

await setup();
const checked = await check();

const root = join(import.meta.dirname, '..');
const folder = mkdtempSync(join(tmpdir(), 'rankzero-test-'));
const results = join(folder, 'results.json');
const vitest = spawnSync(
  process.execPath,
  [
    join(root, 'node_modules/vitest/vitest.mjs'),
    'run',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${results}`,
    ...process.argv.slice(2),
  ],
  { cwd: root, stdio: 'inherit' },
);

let passed = 0;
let failed = 0;
try {
  for (const file of JSON.parse(readFileSync(results, 'utf8')).testResults) {
    const count = (status) => file.assertionResults.filter((test) => test.status === status).length;
    passed += count('passed');
    failed += count('failed');
    // A file that does not load, or whose hooks fail, has no failed test of its own.
    if (file.status === 'failed' && count('failed') === 0) failed++;
  }
} catch (error) {
  console.error(`vitest left no results: ${error.message}`);
}
rmSync(folder, { recursive: true, force: true });
if ((vitest.status !== 0 || passed === 0) && failed === 0) failed = 1;
passed += checked.passed;
failed += checked.failed;
process.exitCode = failed === 0 ? 0 : 1;
console.log(`${passed} passed, ${failed} failed`);

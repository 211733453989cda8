// Unpacks the .br files of a bundle in place. Several processes may do it at once: each file appears whole or not at all.
// Leaves the file `unpacked`, which tells run.sh whether this host's C++ library is too old for the addon.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { brotliDecompressSync } from 'node:zlib';

const [bundle] = process.argv.slice(2);
const packed = readdirSync(join(bundle, 'rankzero/build'), { recursive: true }).filter((name) => name.endsWith('.br'));
try {
  for (const name of packed) {
    const from = join(bundle, 'rankzero/build', name);
    const to = from.slice(0, -'.br'.length);
    if (existsSync(to)) continue;
    const part = `${to}.${process.pid}`;
    try {
      writeFileSync(part, brotliDecompressSync(readFileSync(from)));
      chmodSync(part, 0o755);
      renameSync(part, to);
    } catch (error) {
      rmSync(part, { force: true });
      throw error;
    }
  }
  const load = ['-e', 'require(process.argv[1])', join(bundle, 'rankzero/build/Release/rankzero.node')];
  const loads = (env) => spawnSync(process.execPath, load, { env: { ...process.env, ...env } }).status === 0;
  const needsOwn = !loads({}) && loads({ LD_LIBRARY_PATH: join(bundle, 'lib') });
  writeFileSync(join(bundle, 'unpacked'), needsOwn ? 'own libraries' : "the host's libraries");
} catch (error) {
  console.error(`run.sh: cannot unpack ${bundle}: ${error.message}`);
  process.exitCode = 1;
}

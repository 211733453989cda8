// The number of GPUs that a rank on this host would see: counted in a process of its own, so that the launcher, which outlives
// its ranks, never loads the addon. As a program it prints the number.
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

export async function countDevices(): Promise<number> {
  const { stdout } = await promisify(execFile)(process.execPath, [fileURLToPath(import.meta.url)]);
  return Number(stdout);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  // Without an await, which would keep the package from being required.
  void import('../native.ts').then(({ native }) => {
    process.stdout.write(String(native.acceleratorInfo().devices.length));
  });
}

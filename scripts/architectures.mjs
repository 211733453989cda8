// Which GPUs a bundle is compiled for, by the release of nvcc ("12.4").
import { spawnSync } from 'node:child_process';

/**
 * Machine code for each, since a driver that is older than the compiler compiles nothing itself; and for the newest also what
 * drivers make code of for GPUs that come later.
 */
export function architecturesFor(release) {
  const [major, minor] = release.split('.').map(Number);
  const knowsBlackwell = major > 12 || (major === 12 && minor >= 8);
  return knowsBlackwell ? '80-real;90a-real;100-real;120' : '80;90a-real';
}

/** The release of the compiler that a build takes: of CUDACXX, else in PATH. Undefined: there is none. */
export function nvccRelease() {
  const { stdout, error } = spawnSync(process.env.CUDACXX ?? 'nvcc', ['--version'], { encoding: 'utf8' });
  return error ? undefined : /release (\d+\.\d+)/.exec(stdout)?.[1];
}

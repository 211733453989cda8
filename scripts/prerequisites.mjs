// What building the addon needs from the system, and the command that installs what is missing.
// Plain Node without dependencies: it runs before `npm ci` and inside `npm install` of a dependent.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const run = (command, args, input) => spawnSync(command, args, { encoding: 'utf8', input, timeout: 60_000 });

const compiler = process.env.CXX ?? 'c++';
const compiles = (source) => run(compiler, ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'], source).status === 0;

function cmakeVersion() {
  const match = /version (\d+)\.(\d+)/.exec(run('cmake', ['--version']).stdout ?? '');
  return match && [Number(match[1]), Number(match[2])];
}

/** Name, test, and the package that provides it, for each thing the build needs. */
const wanted = [
  {
    what: `a C++20 compiler (g++ 10 or later, clang++ 14 or later; tried: ${compiler})`,
    apt: 'g++',
    dnf: 'gcc-c++',
    present: () => compiles('#include <concepts>\nstatic_assert(std::integral<int>);\n'),
  },
  {
    what: 'make',
    apt: 'make',
    dnf: 'make',
    present: () => run('make', ['--version']).status === 0 || run('ninja', ['--version']).status === 0,
  },
  {
    what: 'CMake 3.20 or later',
    apt: 'cmake',
    dnf: 'cmake',
    present: () => {
      const version = cmakeVersion();
      return version != null && (version[0] > 3 || (version[0] === 3 && version[1] >= 20));
    },
  },
  {
    what: 'the oneDNN headers (oneapi/dnnl/dnnl.hpp)',
    apt: 'libdnnl-dev',
    dnf: 'onednn-devel',
    // With CMAKE_PREFIX_PATH, CMake knows places that the compiler does not; without a compiler nothing can be said.
    present: () =>
      Boolean(process.env.CMAKE_PREFIX_PATH) ||
      !compiles('int x;') ||
      compiles('#if !__has_include(<oneapi/dnnl/dnnl.hpp>)\n#error\n#endif\n'),
  },
];

/** What only jobs of several hosts need: the addon builds without it. */
const forSeveralHosts = {
  what: "Gloo's headers (gloo/transport/tcp/device.h), which jobs of several hosts need",
  apt: 'libgloo-dev',
  dnf: 'gloo-devel',
  present: () => compiles('#if !__has_include(<gloo/transport/tcp/device.h>)\n#error\n#endif\n'),
};

/** The optional entries that this machine lacks. Needs a compiler. */
export function missingOptional() {
  return forSeveralHosts.present() ? [] : [forSeveralHosts];
}

/** The entries of `wanted` that this machine lacks. */
export function missingPrerequisites() {
  const missing = wanted.filter((item) => !item.present());
  // oneDNN cannot be looked for without a compiler: then name both at once.
  const dnnl = wanted[3];
  if (missing.includes(wanted[0]) && !missing.includes(dnnl)) missing.push(dnnl);
  return missing;
}

/** `apt` on Debian, Ubuntu and what derives from them, `dnf` on Fedora and its kin, else undefined. */
export function packageManager() {
  let release = '';
  try {
    release = readFileSync('/etc/os-release', 'utf8');
  } catch {}
  const ids = [...release.matchAll(/^ID(?:_LIKE)?="?([^"\n]*)"?$/gm)].flatMap((match) => match[1].split(' '));
  if (ids.includes('debian') || ids.includes('ubuntu')) return 'apt';
  if (ids.includes('fedora') || ids.includes('rhel')) return 'dnf';
  return undefined;
}

/** The one line that installs `missing` here, or a list of package names where the system is not known. */
export function installCommand(missing, manager = packageManager()) {
  const sudo = process.getuid?.() === 0 ? '' : 'sudo ';
  if (manager === 'apt') return `${sudo}apt-get install -y ${missing.map((m) => m.apt).join(' ')}`;
  if (manager === 'dnf') return `${sudo}dnf install -y ${missing.map((m) => m.dnf).join(' ')}`;
  const debian = `on Debian and Ubuntu: apt-get install -y ${missing.map((m) => m.apt).join(' ')}`;
  return `${debian}\n  on Fedora: dnf install -y ${missing.map((m) => m.dnf).join(' ')}`;
}

/** True where package.json's `engines` admits this Node. */
export function nodeIsSupported(version = process.versions.node) {
  const [major, minor] = version.split('.').map(Number);
  return (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22;
}

/** What to tell a user who lacks something; undefined when nothing is missing. */
export function prerequisiteMessage() {
  if (process.platform !== 'linux') return `rankzero runs on Linux; this is ${process.platform}.`;
  if (!nodeIsSupported()) {
    return `rankzero needs Node ^20.19 or >=22.12; this is ${process.versions.node}.`;
  }
  const missing = missingPrerequisites();
  if (missing.length === 0) return undefined;
  return [
    'rankzero builds its native addon, and this machine lacks:',
    ...missing.map((m) => `  - ${m.what}`),
    'Install with:',
    `  ${installCommand(missing)}`,
  ].join('\n');
}

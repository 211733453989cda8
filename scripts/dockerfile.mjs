// `npm run test:dockerfile`: carries out COPY, ENV and RUN of examples/cluster/Dockerfile in a debootstrap root, for machines
// without Docker, and trains there. Needs root, Debian and debootstrap; Node of this machine stands in for the image of FROM.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';

const context = join(import.meta.dirname, '..');
const authorities = process.env.NODE_EXTRA_CA_CERTS;
const run = (file, ...args) => execFileSync(file, args, { cwd: context, stdio: 'inherit' });

/** Instructions with their arguments; lines that end in a backslash are joined, comments left out. */
function instructions(text) {
  const lines = text.replace(/^\s*#.*\n/gm, '').replace(/\\\n/g, ' ');
  return [...lines.matchAll(/^([A-Z]+) +(.*)$/gm)].map(([, name, rest]) => ({ name, rest: rest.replace(/ +/g, ' ') }));
}

/** A command in the root, with /proc and /dev of its own mount namespace. */
function inside(root, command, env) {
  const mounts = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" /bin/sh -ec "$1"';
  execFileSync('unshare', ['--mount', 'sh', '-c', mounts, root, command], {
    stdio: 'inherit',
    env: {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      HOME: '/root',
      ...(authorities ? { NODE_EXTRA_CA_CERTS: authorities } : {}),
      ...env,
    },
  });
}

/** What makes a bare Debian an image with Node, and lets apt and npm reach what they reach on this machine. */
function furnish(root) {
  const modules = execFileSync('npm', ['root', '--global'], { encoding: 'utf8' }).trim();
  const headers = join(dirname(dirname(process.execPath)), 'include/node');
  const copies = [
    [process.execPath, 'usr/local/bin/node'],
    [join(modules, 'npm'), 'usr/local/lib/node_modules/npm'],
    [headers, 'usr/local/include/node'],
    ...['/etc/apt', '/etc/resolv.conf', '/etc/hosts', '/etc/ssl/certs', '/usr/share/keyrings'].map((path) => [
      path,
      path,
    ]),
    ...(authorities ? [[authorities, authorities]] : []),
    [execFileSync('npm', ['config', 'get', 'userconfig'], { encoding: 'utf8' }).trim(), 'root/.npmrc'],
  ];
  for (const [from, to] of copies) {
    if (!existsSync(from)) continue;
    rmSync(join(root, to), { recursive: true, force: true });
    mkdirSync(dirname(join(root, to)), { recursive: true });
    run('cp', '-rL', from, join(root, to));
  }
  inside(root, 'ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm');
  inside(root, 'if [ -e /root/.npmrc ]; then sed -i s,^nodedir=.*,nodedir=/usr/local, /root/.npmrc; fi');
}

const root = mkdtempSync(join(tmpdir(), 'rankzero-root-'));
try {
  const mirror = /^(?:URIs:|deb)\s+(?:\[.*\]\s+)?(\S+)/m.exec(
    ['debian.sources', '../sources.list']
      .map((name) => join('/etc/apt/sources.list.d', name))
      .filter((file) => existsSync(file))
      .map((file) => readFileSync(file, 'utf8'))
      .join('\n'),
  )?.[1];
  run('debootstrap', '--variant=minbase', 'bookworm', root, ...(mirror ? [mirror] : []));
  furnish(root);
  run('npm', 'pack', '--ignore-scripts', '--loglevel=error');
  const env = {};
  for (const { name, rest } of instructions(readFileSync(join(context, 'examples/cluster/Dockerfile'), 'utf8'))) {
    console.log(`\n${name} ${rest}`);
    if (name === 'RUN') inside(root, rest, env);
    else if (name === 'ENV') Object.assign(env, Object.fromEntries(rest.split(' ').map((word) => word.split('='))));
    else if (name === 'COPY') {
      const words = rest.split(' ');
      const to = join(root, words.pop());
      run('sh', '-ec', `mkdir -p "$0" && cp -r ${words.join(' ')} "$1"`, dirname(`${to}x`), to);
    } else if (name !== 'FROM' && name !== 'CMD') throw new Error(`the script does not know ${name}`);
  }
  run('cp', '-r', 'examples', join(root, 'tmp/examples'));
  const data = '/tmp/examples/data/devils-dictionary.train.jsonl';
  const train = `rankzero finetune --nproc 2 --model /tmp/examples/moby-llama --data ${data} --out /tmp/out --max-steps 2`;
  console.log(`\n${train}`);
  inside(root, train, env);
  inside(
    root,
    'test -s /tmp/out/model.safetensors && test -e "$(npm root -g)/rankzero/build/Release/rankzero_gloo.so"',
    env,
  );
  console.log('\nthe steps of examples/cluster/Dockerfile: passed');
} finally {
  run('sh', '-c', 'rm -f rankzero-*.tgz');
  rmSync(root, { recursive: true, force: true });
}

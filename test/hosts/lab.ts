// Several hosts on one machine: network namespaces with their own host names, connected by a switch in a namespace of its own.
// Needs root and iproute2; `whyNoHosts` says what is missing, for tests that are skipped then.
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ip = (...args: string[]): string =>
  execFileSync('ip', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

let labs = 0;

function tryNamespaces(): string | undefined {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  const name = `rz${process.pid}t`;
  const made = spawnSync('ip', ['netns', 'add', name], { encoding: 'utf8' });
  if (made.error) return 'ip (iproute2) is missing';
  if (made.status !== 0) return `network namespaces cannot be made here: ${made.stderr.trim()}`;
  const link = spawnSync('ip', ['-n', name, 'link', 'add', 'v0', 'type', 'veth', 'peer', 'name', 'v1'], {
    encoding: 'utf8',
  });
  spawnSync('ip', ['netns', 'del', name]);
  return link.status === 0 ? undefined : `veth links cannot be made here: ${link.stderr.trim()}`;
}

let netem: boolean | undefined;

/** Whether this kernel delays and loses packets by itself. */
function hasNetem(): boolean {
  if (netem !== undefined) return netem;
  const name = `rz${process.pid}n`;
  ip('netns', 'add', name);
  const tried = spawnSync('ip', [
    'netns',
    'exec',
    name,
    'tc',
    'qdisc',
    'add',
    'dev',
    'lo',
    'root',
    'netem',
    'delay',
    '1ms',
  ]);
  ip('netns', 'del', name);
  netem = tried.status === 0;
  return netem;
}

let cable: string | undefined;

function cableProgram(): string {
  if (cable !== undefined) return cable;
  const folder = mkdtempSync(join(tmpdir(), 'rankzero-cable-'));
  process.once('exit', () => rmSync(folder, { recursive: true }));
  cable = join(folder, 'cable');
  execFileSync('cc', ['-O1', '-o', cable, join(import.meta.dirname, 'fixtures/cable.c')]);
  return cable;
}

/** Why hosts cannot be made on this machine; undefined where they can. */
export const whyNoHosts: string | undefined = tryNamespaces();

export interface HostProcess {
  /** Null if a signal ended it, `signal` then. */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  milliseconds: number;
}

export interface StartOptions {
  env?: Record<string, string | undefined>;
  cwd?: string;
  /** Folders that this host does not have: they are empty here, or another folder's content. */
  mounts?: Readonly<Record<string, 'empty' | string>>;
  /** Milliseconds after which everything on the host is killed. */
  timeout?: number;
  onLine?: (line: string, stream: 'stdout' | 'stderr') => void;
}

/** One host of a lab. */
export class Host {
  readonly name: string;
  /** IPv4 and IPv6 addresses on the lab's network. */
  readonly address: string;
  readonly address6: string;
  readonly namespace: string;
  private readonly lab: Lab;
  private readonly port: string;
  /** The program that is this host's cable. */
  private cable: number | undefined;

  constructor(lab: Lab, name: string, index: number) {
    this.lab = lab;
    this.name = name;
    this.namespace = `${lab.name}-${name}`;
    this.port = `p${index}`;
    this.address = `10.90.0.${10 + index}`;
    this.address6 = `fd90::${10 + index}`;
    ip('netns', 'add', this.namespace);
    ip('-n', lab.switchName, 'link', 'add', this.port, 'type', 'veth', 'peer', 'name', 'e0', 'netns', this.namespace);
    ip('-n', lab.switchName, 'link', 'set', this.port, 'master', 'sw0', 'up');
    ip('-n', this.namespace, 'link', 'set', 'lo', 'up');
    ip('-n', this.namespace, 'addr', 'add', `${this.address}/24`, 'dev', 'e0');
    ip('-n', this.namespace, 'addr', 'add', `${this.address6}/64`, 'dev', 'e0', 'nodad');
    ip('-n', this.namespace, 'link', 'set', 'e0', 'up');
  }

  /** Starts a program on this host: its own network, and its own host name. */
  start(argv: readonly string[], options: StartOptions = {}): { child: ChildProcess; done: Promise<HostProcess> } {
    const started = Date.now();
    const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
    const mounts = Object.entries(options.mounts ?? {}).map(([at, what]) =>
      what === 'empty' ? `mount -t tmpfs none ${quote(at)} && ` : `mount --bind ${quote(what)} ${quote(at)} && `,
    );
    const shell = `hostname "$0" && ${mounts.join('')}exec "$@"`;
    const child = spawn(
      'ip',
      ['netns', 'exec', this.namespace, 'unshare', '-um', 'sh', '-c', shell, this.name, ...argv],
      {
        env: cleanEnvironment(options.env),
        cwd: options.cwd,
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    const text = { stdout: '', stderr: '' };
    for (const stream of ['stdout', 'stderr'] as const) {
      let rest = '';
      child[stream]!.setEncoding('utf8').on('data', (chunk: string) => {
        text[stream] += chunk;
        const lines = (rest + chunk).split('\n');
        rest = lines.pop()!;
        for (const line of lines) options.onLine?.(line, stream);
      });
    }
    const timer = setTimeout(() => this.killAll(), options.timeout ?? 60_000);
    const done = new Promise<HostProcess>((resolve) => {
      child.once('close', (code, signal) => {
        clearTimeout(timer);
        resolve({ code, signal, ...text, milliseconds: Date.now() - started });
      });
    });
    return { child, done };
  }

  run(argv: readonly string[], options: StartOptions = {}): Promise<HostProcess> {
    return this.start(argv, options).done;
  }

  /** Processes on this host. */
  get pids(): number[] {
    return ip('netns', 'pids', this.namespace).split('\n').filter(Boolean).map(Number);
  }

  signalAll(signal: NodeJS.Signals): void {
    for (const pid of this.pids) {
      try {
        process.kill(pid, signal);
      } catch {
        // It is gone.
      }
    }
  }

  killAll(): void {
    this.signalAll('SIGKILL');
  }

  /** Pulls the cable, or puts it back. Sockets live on. */
  setLink(up: boolean): void {
    ip('-n', this.lab.switchName, 'link', 'set', this.port, up ? 'up' : 'down');
  }

  /**
   * What this host sends and receives, in tc netem's words: `delay 50ms loss 1%`; '' for none. Where the kernel has no netem, a
   * program is the cable (fixtures/cable.c).
   */
  shape(words: string): void {
    if (hasNetem()) this.shapeByNetem(words);
    else this.shapeByCable(words);
  }

  private shapeByNetem(words: string): void {
    const sides: [string, string][] = [
      [this.lab.switchName, this.port],
      [this.namespace, 'e0'],
    ];
    for (const [namespace, device] of sides) {
      const tc = (...args: string[]): string[] => ['netns', 'exec', namespace, 'tc', 'qdisc', ...args];
      spawnSync('ip', tc('del', 'dev', device, 'root'));
      if (words !== '') ip(...tc('add', 'dev', device, 'root', 'netem', ...words.split(' ')));
    }
  }

  /** Holds what this host sends and receives to a number of gigabits a second, `1gbit`; '' for none. */
  limit(rate: string): void {
    // What the rate gives in 5 ms: timers of busy cores are late, and what they miss of a smaller bucket is lost.
    const burst = Math.max(256_000, (Number.parseFloat(rate) * 1e9 * 0.005) / 8);
    const sides: [string, string][] = [
      [this.lab.switchName, this.port],
      [this.namespace, 'e0'],
    ];
    for (const [namespace, device] of sides) {
      spawnSync('ip', ['netns', 'exec', namespace, 'tc', 'qdisc', 'del', 'dev', device, 'root'], { stdio: 'ignore' });
      const bucket = ['tbf', 'rate', rate, 'burst', String(Math.round(burst)), 'latency', '20ms'];
      if (rate !== '') ip('netns', 'exec', namespace, 'tc', 'qdisc', 'add', 'dev', device, 'root', ...bucket);
    }
  }

  /** The cable is between this host's port and a pair of interfaces that takes its place at the switch. */
  private shapeByCable(words: string): void {
    const { switchName } = this.lab;
    if (this.cable !== undefined) {
      process.kill(this.cable, 'SIGKILL');
      this.cable = undefined;
      ip('-n', switchName, 'link', 'del', `${this.port}s`);
      ip('-n', switchName, 'link', 'set', this.port, 'master', 'sw0');
    }
    if (words === '') return;
    const match = /^delay (\d+)ms(?: loss ([\d.]+)%)?$/.exec(words);
    if (!match) throw new Error(`a cable is shaped by "delay Nms" and "delay Nms loss N%", not by "${words}"`);
    const [atSwitch, atCable] = [`${this.port}s`, `${this.port}c`];
    ip('-n', switchName, 'link', 'add', atSwitch, 'type', 'veth', 'peer', 'name', atCable);
    const place = [this.port, atCable, match[1]!, match[2] ?? '0', atSwitch, `${this.namespace}:e0`];
    ip('-n', switchName, 'link', 'set', this.port, 'nomaster');
    ip('-n', switchName, 'link', 'set', atCable, 'up');
    ip('-n', switchName, 'link', 'set', atSwitch, 'master', 'sw0', 'up');
    this.cable = Number(ip('netns', 'exec', switchName, cableProgram(), ...place));
  }

  /** Bytes that went over this host's cable since it was made. */
  get wire(): { sent: number; received: number } {
    const [link] = JSON.parse(ip('-n', this.namespace, '-s', '-j', 'link', 'show', 'e0')) as {
      stats64: { rx: { bytes: number }; tx: { bytes: number } };
    }[];
    return { sent: link!.stats64.tx.bytes, received: link!.stats64.rx.bytes };
  }

  /** Ports on which something on this host listens for TCP. */
  get openPorts(): number[] {
    const text = execFileSync('ip', ['netns', 'exec', this.namespace, 'cat', '/proc/net/tcp', '/proc/net/tcp6'], {
      encoding: 'utf8',
    });
    return [...text.matchAll(/^ *\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A /gm)].map((match) =>
      Number.parseInt(match[1]!, 16),
    );
  }

  /** @internal */
  remove(): void {
    if (this.cable !== undefined) process.kill(this.cable, 'SIGKILL');
    this.killAll();
    ip('netns', 'del', this.namespace);
  }
}

/** Hosts h0, h1, … on one switch. Dispose of it: processes are killed and namespaces removed. */
export class Lab implements Disposable {
  readonly name: string = `rz${process.pid}x${labs++}`;
  readonly hosts: readonly Host[];

  constructor(numHosts: number) {
    ip('netns', 'add', this.switchName);
    ip('-n', this.switchName, 'link', 'add', 'name', 'sw0', 'type', 'bridge');
    ip('-n', this.switchName, 'link', 'set', 'sw0', 'up');
    this.hosts = Array.from({ length: numHosts }, (_, i) => new Host(this, `h${i}`, i));
  }

  get switchName(): string {
    return `${this.name}-sw`;
  }

  [Symbol.dispose](): void {
    for (const host of this.hosts) host.remove();
    ip('netns', 'del', this.switchName);
  }
}

/** The environment of the test without variables of any launcher. */
export function cleanEnvironment(extra: Record<string, string | undefined> = {}): NodeJS.ProcessEnv {
  const launchers =
    /^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_|PET_|SLURM_|OMPI_|PMI_|MPI_|SM_|RANKZERO_|VITEST|NODE_OPTIONS)/;
  const own = Object.entries(process.env).filter(([name]) => !launchers.test(name));
  return { ...Object.fromEntries(own), ...extra };
}

// Launchers on several hosts: they find each other, agree on the ranks, and end together. Most ranks here are small scripts
// that join no group.
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { workFolder } from '../multi/finetune_helpers.ts';
import { waitForDeath } from '../multi/helpers.ts';
import { type Host, type HostProcess, Lab, type StartOptions, whyNoHosts } from './lab.ts';

const folder = mkdtempSync(join(tmpdir(), 'rankzero-hosts-'));
const cli = join(import.meta.dirname, '../../dist/cli/main.js');
const script = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};

const places = script(
  'places.mjs',
  `const { RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT } = process.env;
   console.log([RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT].join(' '));`,
);
const waits = script('waits.mjs', `console.log('pid ' + process.pid); setInterval(() => {}, 1000);`);
/** Rank FAILS ends as HOW says, once all ranks that wait are up. */
const fails = script(
  'fails.mjs',
  `import { setTimeout } from 'node:timers/promises';
   console.log('pid ' + process.pid);
   if (process.env.RANK === process.env.FAILS) {
     await setTimeout(Number(process.env.AFTER ?? 0));
     if (process.env.HOW === 'throw') throw new Error('the disk is full');
     process.exit(Number(process.env.HOW));
   }
   setInterval(() => {}, 1000);`,
);
const saves = script(
  'saves.mjs',
  `const timer = setInterval(() => {}, 1000);
   for (const signal of ['SIGINT', 'SIGTERM'])
     process.on(signal, () => { console.log('saved after ' + signal); clearInterval(timer); process.exitCode = 0; });
   console.log('pid ' + process.pid);`,
);

const secret = 'the-secret-of-these-tests';
const port = 29600;

interface Launcher {
  child: { kill(signal: NodeJS.Signals): boolean; pid?: number | undefined };
  done: Promise<HostProcess>;
}

function launch(host: Host, argv: readonly string[], options: StartOptions = {}): Launcher {
  const env = { RANKZERO_SECRET: secret, RANKZERO_TIMEOUT: '20', ...options.env };
  return host.start([process.execPath, cli, 'run', ...argv], { ...options, env });
}

describe.skipIf(whyNoHosts)(`launchers of several hosts${whyNoHosts ? `: ${whyNoHosts}` : ''}`, () => {
  let lab: Lab;
  let h0: Host;
  let h1: Host;
  let h2: Host;

  beforeAll(() => {
    lab = new Lab(3);
    [h0, h1, h2] = lab.hosts as [Host, Host, Host];
  });
  afterAll(() => {
    lab?.[Symbol.dispose]();
    rmSync(folder, { recursive: true });
  });

  const place = (node: number, nnodes = 2, address = h0.address): string[] => [
    '--nnodes',
    String(nnodes),
    '--node-rank',
    String(node),
    '--master-address',
    address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`,
  ];

  /** No process and no port is left, and nobody said the secret. */
  async function expectNothingLeft(results: readonly HostProcess[]): Promise<void> {
    for (const host of [h0, h1, h2]) {
      await waitForDeath(host.pids, 3000);
      expect(host.openPorts).toEqual([]);
    }
    for (const { stdout, stderr } of results) expect(stdout + stderr).not.toContain(secret);
  }

  const linesOf = ({ stdout }: HostProcess): string[] => stdout.trim().split('\n').sort();

  /** Starts a job whose ranks print their process ids; resolves when all have. */
  async function startAndWait(
    argv: readonly (readonly string[])[],
    env: Record<string, string>,
    numRanks: number,
  ): Promise<{ launchers: Launcher[]; pids: number[] }> {
    const pids: number[] = [];
    let ready!: () => void;
    const all = new Promise<void>((resolve) => {
      ready = resolve;
    });
    const onLine = (line: string): void => {
      const pid = /pid (\d+)/.exec(line)?.[1];
      if (pid && pids.push(Number(pid)) === numRanks) ready();
    };
    const launchers = argv.map((one, i) => launch(lab.hosts[i]!, one, { env, onLine }));
    const early = Promise.all(launchers.map(({ done }) => done)).then((results) => {
      if (pids.length < numRanks) throw new Error(results.map(({ stderr }) => stderr).join('\n'));
    });
    await Promise.race([all, early]);
    return { launchers, pids };
  }

  it.each(['IPv4', 'IPv6'] as const)(
    'count the ranks of uneven hosts, whoever comes first, over %s',
    async (family) => {
      const address = family === 'IPv4' ? h0.address : h0.address6;
      const late = launch(h2, ['--nproc', '1', ...place(2, 3, address), places]);
      const middle = launch(h1, ['--nproc', '3', ...place(1, 3, address), places]);
      const first = launch(h0, ['--nproc', '2', ...place(0, 3, address), places]);
      const results = await Promise.all([first, middle, late].map(({ done }) => done));
      expect(results.map(({ code }) => code)).toEqual([0, 0, 0]);
      const end = `${address} ${port}`;
      expect(linesOf(results[0]!)).toEqual([`0 0 6 2 0 ${end}`, `[rank 1] 1 1 6 2 0 ${end}`]);
      expect(linesOf(results[1]!)).toEqual([2, 3, 4].map((rank) => `[rank ${rank}] ${rank} ${rank - 2} 6 3 1 ${end}`));
      expect(linesOf(results[2]!)).toEqual([`[rank 5] 5 0 6 1 2 ${end}`]);
      expect(results[1]!.stderr).toBe(
        `rankzero: node 1 (--node-rank) of 3 (--nnodes), 3 ranks here (--nproc), master ${address} (--master-address), port ${port} (--master-address)\n`,
      );
      await expectNothingLeft(results);
    },
  );

  it('the first failure decides for all, and node 0 shows it with its host', async () => {
    const argv = [0, 1].map((node) => ['--nproc', '2', ...place(node), fails]);
    const { launchers, pids } = await startAndWait(argv, { FAILS: '3', HOW: 'throw', AFTER: '300' }, 4);
    const results = await Promise.all(launchers.map(({ done }) => done));
    expect(results.map(({ code }) => code)).toEqual([1, 1]);
    for (const { stderr } of results) expect(stderr.split('\n')[1]).toBe('rank 3 on h1 failed: the disk is full');
    expect(results[0]!.stderr).toMatch(/the disk is full\n {4}at /);
    await waitForDeath(pids, 100);
    await expectNothingLeft(results);
  });

  it('every launcher has the exit code of the rank that failed first', async () => {
    for (const [rank, node] of [
      ['0', 0],
      ['2', 2],
    ] as const) {
      const argv = [0, 1, 2].map((one) => ['--nproc', '1', ...place(one, 3), fails]);
      const { launchers } = await startAndWait(argv, { FAILS: rank, HOW: '7', AFTER: '300' }, 3);
      const results = await Promise.all(launchers.map(({ done }) => done));
      expect(results.map(({ code }) => code)).toEqual([7, 7, 7]);
      for (const { stderr } of results)
        expect(stderr).toContain(`rank ${rank} on h${node} failed: it exited with code 7\n`);
      await expectNothingLeft(results);
    }
  });

  it.each([0, 1])('a launcher that is killed is named on the other node (%i)', async (victim) => {
    const argv = [0, 1].map((node) => ['--nproc', '1', ...place(node), waits]);
    const { launchers, pids } = await startAndWait(argv, {}, 2);
    launchers[victim]!.child.kill('SIGKILL');
    const survivor = await launchers[1 - victim]!.done;
    expect(survivor.code).toBe(1);
    expect(survivor.stderr).toContain(`node ${victim} (h${victim}) failed: its launcher is gone\n`);
    await waitForDeath(pids, 2000);
    await expectNothingLeft([survivor]);
  });

  it('a host that is silent is named after the heartbeat timeout', async () => {
    const argv = [0, 1].map((node) => ['--nproc', '1', ...place(node), waits]);
    const { launchers } = await startAndWait(argv, { RANKZERO_HEARTBEAT_TIMEOUT: '2' }, 2);
    h1.signalAll('SIGSTOP');
    const survivor = await launchers[0]!.done;
    h1.killAll();
    expect(survivor.code).toBe(1);
    expect(survivor.stderr).toContain('node 1 (h1) failed: its launcher has been silent for 2 s\n');
    await launchers[1]!.done;
    await expectNothingLeft([survivor]);
  });

  it('a link that is down for less than the heartbeat timeout is no failure', async () => {
    const argv = [0, 1].map((node) => ['--nproc', '1', ...place(node), fails]);
    const { launchers } = await startAndWait(argv, { FAILS: '1', HOW: '9', AFTER: '4000' }, 2);
    h1.setLink(false);
    setTimeout(() => h1.setLink(true), 2000);
    const results = await Promise.all(launchers.map(({ done }) => done));
    expect(results.map(({ code }) => code)).toEqual([9, 9]);
    expect(results[0]!.stderr).toContain('rank 1 on h1 failed: it exited with code 9');
    await expectNothingLeft(results);
  });

  it('strangers at the port are cut off and do not disturb', async () => {
    const first = launch(h0, ['--nproc', '1', ...place(0), places]);
    while (!h0.openPorts.includes(port)) await new Promise((resolve) => setTimeout(resolve, 20));
    const say = (text: string): Promise<HostProcess> =>
      h2.run([
        'node',
        '-e',
        `const s = require('net').connect(${port}, '${h0.address}'); s.on('error', () => {}).on('close', () => console.log('closed')).resume(); s.write(${text});`,
      ]);
    const strangers = await Promise.all([
      say(`'GET / HTTP/1.1\\r\\n\\r\\n'`),
      say(`'x'.repeat(1e6)`),
      say(`'0'.repeat(64) + ' ' + '0'.repeat(64) + '\\n'`),
      say(`''`),
    ]);
    expect(strangers.map(({ stdout }) => stdout)).toEqual(strangers.map(() => 'closed\n'));
    const other = await launch(h2, ['--nproc', '1', ...place(1), places], { env: { RANKZERO_SECRET: 'another' } }).done;
    expect(other.code).toBe(1);
    expect(other.stderr).toContain(
      `rankzero run: node 1 (h2) does not join the job at port ${port} of ${h0.address}: it does not hold the same secret\n`,
    );
    const second = await launch(h1, ['--nproc', '1', ...place(1), places]).done;
    const results = [await first.done, second];
    expect(results.map(({ code }) => code)).toEqual([0, 0]);
    await expectNothingLeft([...results, other]);
  });

  it('a node that does not come is named, and who was refused', async () => {
    const env = { RANKZERO_TIMEOUT: '4' };
    const others = [
      launch(h1, ['--nproc', '1', ...place(1, 3), places], { env }),
      launch(h2, ['--nproc', '1', ...place(2, 3), places], { env: { ...env, RANKZERO_SECRET: 'another' } }),
    ];
    const first = launch(h0, ['--nproc', '1', ...place(0, 3), places], { env });
    const [zero, one] = await Promise.all([first.done, others[0]!.done]);
    const text = `node 2 of 3 did not come to port ${port} of h0 within 4 s (RANKZERO_TIMEOUT); here: 0 (h0), 1 (h1); refused: `;
    for (const { code, stderr } of [zero, one]) {
      expect(code).toBe(1);
      expect(stderr).toContain(text);
      expect(stderr).toContain(`${h2.address}: it does not hold the secret of this job`);
    }
    await expectNothingLeft([zero, one, await others[1]!.done]);
  });

  it('a wrong address, and what listens there, are said', async () => {
    const env = { RANKZERO_TIMEOUT: '2' };
    const nobody = await launch(h1, ['--nproc', '1', ...place(1, 2, h2.address), places], { env }).done;
    expect(nobody.code).toBe(1);
    expect(nobody.stderr).toMatch(
      /node 0 of 2 did not answer node 1 \(h1\) at port 29600 of 10\.90\.0\.12 within 2 s .*ECONNREFUSED/,
    );
    const server = `require('net').createServer((s) => s.end('SSH-2.0-x\\r\\n')).listen(${port}, () => console.log('up'))`;
    let up!: () => void;
    const isUp = new Promise<void>((resolve) => {
      up = resolve;
    });
    const { done } = h2.start(['node', '-e', server], { onLine: () => up() });
    await isUp;
    const foreign = await launch(h1, ['--nproc', '1', ...place(1, 2, h2.address), places], { env }).done;
    expect(foreign.stderr).toContain('what listens there is no launcher of rankzero');
    const taken = await launch(h2, ['--nproc', '1', ...place(0, 2, h2.address), places], { env }).done;
    expect(taken.code).toBe(1);
    expect(taken.stderr).toContain(`port ${port} of h2, where node 0 waits for the other launchers, is taken`);
    h2.killAll();
    await done;
    await expectNothingLeft([nobody, foreign, taken]);
  });

  it('launchers that do not fit together are refused on all nodes, with the numbers', async () => {
    const twice = [
      launch(h0, ['--nproc', '1', ...place(0, 3), places]),
      launch(h1, ['--nproc', '1', ...place(1, 3), places]),
      launch(h2, ['--nproc', '1', ...place(1, 3), places]),
    ];
    const other = [
      /two launchers say that they are node 1 of 3: one on h[12] and one on h[12]/,
      /node 1 \(h1\) was started for 3 nodes, but node 0 \(h0\) for 2/,
    ] as const;
    const results = await Promise.all(twice.map(({ done }) => done));
    for (const { code, stderr } of results) {
      expect(code).toBe(1);
      expect(stderr).toMatch(other[0]);
    }
    const counts = await Promise.all([
      launch(h0, ['--nproc', '1', ...place(0, 2), places]).done,
      launch(h1, ['--nproc', '1', ...place(1, 3), places]).done,
    ]);
    for (const { code, stderr } of counts) {
      expect(code).toBe(1);
      expect(stderr).toMatch(other[1]);
    }
    await expectNothingLeft([...results, ...counts]);
  });

  it('need a secret', async () => {
    const { code, stderr } = await launch(h0, ['--nproc', '1', ...place(0), places], {
      env: { RANKZERO_SECRET: undefined },
    }).done;
    expect(code).toBe(1);
    expect(stderr).toContain('on several hosts');
    expect(stderr).toContain('have no secret: set RANKZERO_SECRET');
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGINT', 0],
  ] as const)('%s at one launcher is passed on to the ranks of all, which may end well', async (signal, want) => {
    const argv = [0, 1].map((node) => ['--nproc', '2', ...place(node), saves]);
    const { launchers, pids } = await startAndWait(argv, {}, 4);
    launchers[1]!.child.kill(signal);
    const results = await Promise.all(launchers.map(({ done }) => done));
    expect(results.map(({ code }) => code)).toEqual([want, want]);
    for (const { stdout } of results) expect(stdout.match(new RegExp(`saved after ${signal}`, 'g'))).toHaveLength(2);
    await waitForDeath(pids, 100);
    await expectNothingLeft(results);
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ] as const)('%s ends ranks that do not handle it, everywhere and without an error', async (signal, want) => {
    const argv = [0, 1].map((node) => ['--nproc', '2', ...place(node), waits]);
    const { launchers, pids } = await startAndWait(argv, {}, 4);
    launchers[0]!.child.kill(signal);
    const results = await Promise.all(launchers.map(({ done }) => done));
    expect(results.map(({ code }) => code)).toEqual([want, want]);
    for (const { stderr } of results) expect(stderr).not.toContain('failed');
    await waitForDeath(pids, 100);
    await expectNothingLeft(results);
  });

  it('after RANKZERO_GRACE seconds ranks that do not end are killed', async () => {
    const deaf = script(
      'deaf.mjs',
      `process.on('SIGTERM', () => console.log('heard')); console.log('pid ' + process.pid); setInterval(() => {}, 1000);`,
    );
    const argv = [0, 1].map((node) => ['--nproc', '1', ...place(node), deaf]);
    const { launchers } = await startAndWait(argv, { RANKZERO_GRACE: '1' }, 2);
    launchers[0]!.child.kill('SIGTERM');
    const results = await Promise.all(launchers.map(({ done }) => done));
    expect(results.map(({ code }) => code)).toEqual([143, 143]);
    for (const { stdout } of results) expect(stdout).toContain('heard');
    await expectNothingLeft(results);
  });

  it('a rank knows whether it is on the host of the master address', async () => {
    const owns = script(
      'owns.mjs',
      `import { isOwnAddress } from '${new URL('../../dist/distributed/own_address.js', import.meta.url).href}';
       console.log(...(await Promise.all(process.argv.slice(2).map(isOwnAddress))));`,
    );
    const addresses = [h0.address, h0.address6, h1.address, h1.address6];
    const on = async (host: Host): Promise<string> => (await host.run(['node', owns, ...addresses])).stdout;
    expect(await on(h0)).toBe('true true false false\n');
    expect(await on(h1)).toBe('false false true true\n');
  });

  it('SIGTERM at one host ends rankzero finetune on both with a checkpoint, whatever the ranks of each', async () => {
    const dir = await workFolder(22);
    const out = join(dir, 'out');
    const options = ['--model', 'examples/moby-llama', '--data', join(dir, 'train.jsonl'), '--out', out];
    const length = [
      '--device',
      'cpu',
      '--batch-size',
      '2',
      '--no-eval-at-start',
      '--max-steps',
      '500',
      '--epochs',
      '200',
    ];
    let trains!: () => void;
    const training = new Promise<void>((resolve) => {
      trains = resolve;
    });
    const launchers = [0, 1].map((i) =>
      lab.hosts[i]!.start(
        [process.execPath, cli, 'finetune', ...options, ...length, ...place(i), '--nproc', String(2 - i)],
        {
          cwd: join(import.meta.dirname, '../..'),
          env: { RANKZERO_SECRET: secret, RANKZERO_TIMEOUT: '40' },
          onLine: (line) => /^step +1\//.test(line) && trains(),
        },
      ),
    );
    const ends = Promise.all(launchers.map(({ done }) => done));
    await Promise.race([training, ends]);
    launchers[1]!.child.kill('SIGTERM');
    const results = await ends;
    expect(
      results.map(({ code }) => code),
      results.map(({ stderr }) => stderr).join('\n'),
    ).toEqual([143, 143]);
    expect(results[0]!.stdout).toContain('3 ranks (gloo');
    expect(readdirSync(out).filter((name) => name.startsWith('checkpoint'))).toHaveLength(1);
    rmSync(dir, { recursive: true });
    await expectNothingLeft(results);
  });

  it('a launcher that is started once for each rank becomes that rank', async () => {
    const task = (rank: number): Record<string, string> => ({
      SLURM_STEP_ID: '0',
      SLURM_PROCID: String(rank),
      SLURM_NTASKS: '2',
      SLURM_LOCALID: '0',
      SLURM_NODEID: String(rank),
      SLURM_STEP_TASKS_PER_NODE: '1(x2)',
      SLURM_STEP_NODELIST: 'h[0-1]',
      SLURM_JOB_ID: '7',
    });
    const is = script(
      'is.mjs',
      `import { rankEnvironment } from '${new URL('../../dist/distributed/environment.js', import.meta.url).href}';
       const { rank, worldSize, masterAddr } = rankEnvironment(); console.log(rank, worldSize, masterAddr); process.exitCode = rank * 5;`,
    );
    const results = await Promise.all([0, 1].map((i) => launch(lab.hosts[i]!, [is], { env: task(i) }).done));
    expect(results.map(({ stdout }) => stdout)).toEqual(['0 2 h0\n', '1 2 h0\n']);
    expect(results.map(({ code }) => code)).toEqual([0, 5]);
    expect(results[0]!.stderr).toContain('joining as a rank, 2 (SLURM_NTASKS) in all on 2 nodes');
    // With --nproc the same two tasks are the launchers of their hosts.
    const env = (i: number) => ({ ...task(i), MASTER_ADDR: h0.address });
    const hosts = await Promise.all(
      [0, 1].map((i) => launch(lab.hosts[i]!, ['--nproc', '2', places], { env: env(i) }).done),
    );
    expect(hosts.map(({ code }) => code)).toEqual([0, 0]);
    expect(linesOf(hosts[1]!)).toEqual(
      [2, 3].map((rank) => `[rank ${rank}] ${rank} ${rank - 2} 4 2 1 ${h0.address} 29514`),
    );
    await expectNothingLeft([...results, ...hosts]);
  });
});

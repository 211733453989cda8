// Slurm for real: jobs of examples/cluster/slurm.sbatch on two nodes of a cluster in namespaces, one of them preempted, and the
// ways of starting ranks under srun. Needs Debian's slurm-wlm and munge; `npm run test:clusters` installs them.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Lab, whyNoHosts } from './lab.ts';
import { nameHosts } from './names.ts';
import { SlurmCluster, whyNoSlurm } from './slurm_cluster.ts';

const root = join(import.meta.dirname, '../..');
const why = whyNoHosts ?? whyNoSlurm;
const cli = join(root, 'dist/cli/main.js');

/** What keeps a job of a 3M-parameter model to seconds. */
const small = [
  '--device',
  'cpu',
  '--batch-size',
  '1',
  '--seq-length',
  '32',
  '--log-steps',
  '1',
  '--eval-data',
  'eval.jsonl',
];
/** Each rank says who all of them are. */
const who = `
  import { hostname } from 'node:os';
  import { dist } from '${root}/dist/index.js';
  import { allGatherJson } from '${root}/dist/distributed/exchange.js';
  await dist.initProcessGroup();
  console.log(JSON.stringify(allGatherJson(dist.group, { host: hostname(), localRank: dist.getLocalRank() })));
`;
const job = ['examples/cluster/slurm.sbatch', ...small];

describe.skipIf(why)(`Slurm${why ? `: ${why}` : ''}`, () => {
  let lab: Lab;
  let names: Disposable;
  let cluster: SlurmCluster;
  let folder: string;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-slurm-'));
    // A clone as a job sees it, with a folder of its own for what it writes.
    for (const name of ['dist', 'examples']) symlinkSync(join(root, name), join(folder, name));
    writeFileSync(join(folder, 'eval.jsonl'), '{"text": "whale"}\n');
    writeFileSync(join(folder, 'who.mjs'), who);
    lab = new Lab(3);
    names = nameHosts(lab);
    cluster = await SlurmCluster.start(lab, join(folder, 'slurm'));
  });
  afterAll(() => {
    lab?.[Symbol.dispose]();
    names?.[Symbol.dispose]();
    if (folder) rmSync(folder, { recursive: true });
  });

  const outOf = (id: string): string => join(folder, `out/slurm-${id}`);
  const log = (id: string): string => readFileSync(join(folder, `rankzero-${id}.log`), 'utf8');

  interface Line {
    kind: string;
    step?: number;
    worldSize?: number;
    startStep?: number;
  }
  const metrics = (id: string): Line[] => {
    const file = join(outOf(id), 'metrics.jsonl');
    const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
    return text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as Line);
  };
  const steps = (id: string): (number | undefined)[] =>
    metrics(id).flatMap(({ kind, step }) => (kind === 'step' ? [step] : []));

  /** Waits until a job has trained two steps. */
  const trains = (id: string): Promise<void> =>
    cluster.until(`job ${id} trains`, async () => metrics(id).filter(({ kind }) => kind === 'step').length >= 2);
  /** Steps from `first` to `last`. */
  const range = (first: number, last: number): number[] =>
    Array.from({ length: last - first + 1 }, (_, i) => first + i);
  const checkpoints = (id: string): string[] => readdirSync(outOf(id)).filter((name) => name.startsWith('checkpoint'));

  it('the example trains on two nodes as one job, and says its secret to nobody', async () => {
    const id = await cluster.submit([...job, '--max-steps', '12'], folder);
    await trains(id);
    const pids = lab.hosts.slice(0, 2).flatMap((host) => host.pids);
    const read = (pid: number, file: string): string => {
      try {
        return readFileSync(`/proc/${pid}/${file}`, 'utf8');
      } catch {
        return ''; // It has ended.
      }
    };
    const secrets = new Set(
      pids.flatMap((pid) => /(?:^|\0)RANKZERO_SECRET=([0-9a-f]{64})\0/.exec(read(pid, 'environ'))?.[1] ?? []),
    );
    expect(secrets.size).toBe(1);
    const [secret] = secrets;
    for (const pid of pids) expect(read(pid, 'cmdline')).not.toContain(secret);
    expect(await cluster.jobEnds(id)).toMatchObject({ JobState: 'COMPLETED', NumNodes: '2', Restarts: '0' });
    expect(log(id) + cluster.log).not.toContain(secret);
    expect(log(id)).toContain('rankzero: 2 ranks of 2 hosts, connected by gloo\n');
    const starts = metrics(id).filter(({ kind }) => kind === 'start');
    expect(starts).toMatchObject([{ worldSize: 2, startStep: 0 }]);
    expect(steps(id)).toEqual(range(1, 12));
    expect(readdirSync(join(folder, 'out'))).toEqual([`slurm-${id}`]);
    const files = ['config.json', 'metrics.jsonl', 'model.safetensors', 'report.html'];
    expect(readdirSync(outOf(id))).toEqual(expect.arrayContaining(files));
  });

  it('preempted by a job with priority, the example saves, waits, resumes, and ends as one run', async () => {
    const id = await cluster.submit([...job, '--max-steps', '40'], folder);
    await trains(id);
    const urgent = ['--partition=urgent', '--nodes=2', '--exclusive', '--output=urgent.log', '--wrap', 'true'];
    expect(await cluster.jobEnds(await cluster.submit(urgent, folder))).toMatchObject({ JobState: 'COMPLETED' });
    expect(log(id)).toContain('SIGTERM: saving after this step');
    expect(log(id)).toContain('stopped after saving: back into the queue\n');
    const saved = steps(id).length;
    expect(saved).toBeLessThan(40);
    expect(checkpoints(id)).toEqual([`checkpoint-${saved}`]);
    expect(await cluster.jobEnds(id)).toMatchObject({ JobState: 'COMPLETED', Restarts: '1' });
    const starts = metrics(id).filter(({ kind }) => kind === 'start');
    expect(starts.map(({ startStep }) => startStep)).toEqual([0, saved]);
    expect(steps(id)).toEqual(range(1, 40));
    expect(log(id)).toContain('Done in');
  });

  it('cancelled by its user, the example saves and is over', async () => {
    const id = await cluster.submit([...job, '--max-steps', '2000'], folder);
    await trains(id);
    await cluster.run(['scancel', id]);
    expect(await cluster.jobEnds(id)).toMatchObject({ JobState: 'CANCELLED', Restarts: '0' });
    await cluster.until(
      'nothing of it is left',
      async () => /COMPLETING/.test((await cluster.job(id)).JobState!) === false,
    );
    expect(checkpoints(id)).toEqual([`checkpoint-${steps(id).length}`]);
    expect(log(id)).not.toContain('back into the queue');
  });

  it('tasks of srun are ranks, 2 on one node and 1 on the other', async () => {
    const env = { RANKZERO_SECRET: 'of-this-test' };
    const argv = ['srun', '--nodes=2', '--ntasks=3', 'node', cli, 'run', 'who.mjs'];
    const { code, stdout, stderr } = await cluster.run(argv, { cwd: folder, env });
    expect(code, stderr).toBe(0);
    const all = JSON.stringify([
      { host: 'h0', localRank: 0 },
      { host: 'h0', localRank: 1 },
      { host: 'h1', localRank: 0 },
    ]);
    expect(stdout).toBe(`${all}\n`.repeat(3));
    expect(stderr).toContain('joining as a rank, 3 (SLURM_NTASKS) in all on 2 nodes, 2 on this host');
  });

  it('a batch script without srun is a job of one rank, and not rank 0 of 2', async () => {
    const wrapped = `env | grep ^SLURM_NTASKS=; node who.mjs; node ${cli} run --nproc 1 who.mjs`;
    const argv = ['--nodes=2', '--ntasks=2', '--output=alone.log', '--wrap', wrapped];
    expect(await cluster.jobEnds(await cluster.submit(argv, folder))).toMatchObject({ JobState: 'COMPLETED' });
    const alone = JSON.stringify([{ host: 'h0', localRank: 0 }]);
    expect(readFileSync(join(folder, 'alone.log'), 'utf8')).toBe(`SLURM_NTASKS=2\n${alone}\n${alone}\n`);
  });
});

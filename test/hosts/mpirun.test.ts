// Open MPI for real: mpirun starts one process for each rank on two hosts, and ends them. Needs Debian's openmpi-bin; `npm run
// test:clusters` installs it. Where it says ssh, an agent of the test's enters the namespace of the other host.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { listCheckpoints } from '../../src/train/checkpoints.ts';
import { waitForDeath } from '../multi/helpers.ts';
import { Lab, whyNoHosts } from './lab.ts';
import { nameHosts } from './names.ts';
import { missingProgram } from './slurm_cluster.ts';

const root = join(import.meta.dirname, '../..');
const cli = join(root, 'dist/cli/main.js');
const why = whyNoHosts ?? (missingProgram('mpirun') && 'skipped: mpirun is missing (apt-get install -y openmpi-bin)');
const secret = 'the-secret-of-the-mpirun-test';

describe.skipIf(why)(`Open MPI${why ? `: ${why}` : ''}`, () => {
  let lab: Lab;
  let names: Disposable;
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-mpirun-'));
    lab = new Lab(2);
    names = nameHosts(lab);
    const agent = `#!/bin/sh\nhost=$1; shift\nexec ip netns exec ${lab.name}-$host unshare -u sh -c "hostname $host; $*"\n`;
    writeFileSync(join(folder, 'agent'), agent, { mode: 0o755 });
    writeFileSync(join(folder, 'hosts'), 'h0 slots=2\nh1 slots=2\n');
    writeFileSync(join(folder, 'eval.jsonl'), '{"text": "whale"}\n');
  });
  afterAll(() => {
    lab?.[Symbol.dispose]();
    names?.[Symbol.dispose]();
    if (folder) rmSync(folder, { recursive: true });
  });

  const mca = (settings: Record<string, string | number>): string[] =>
    Object.entries(settings).flatMap(([name, value]) => ['--mca', name, String(value)]);

  /** `mpirun` on h0 of a fine-tuning job of two ranks, one on each host. */
  function train(out: string, maxSteps: number, settings: Record<string, number> = {}) {
    const argv = [
      ['mpirun', '--allow-run-as-root', '--hostfile', join(folder, 'hosts'), '-np', '2', '--map-by', 'node'],
      mca({ plm: 'rsh', plm_rsh_agent: join(folder, 'agent'), oob_tcp_if_include: 'e0', ...settings }),
      ['-x', 'MASTER_ADDR', '-x', 'RANKZERO_SECRET', '-x', 'PATH'],
      [process.execPath, cli, 'finetune', '--model', join(root, 'examples/moby-llama'), '--device', 'cpu'],
      ['--data', join(root, 'examples/data/devils-dictionary.train.jsonl'), '--batch-size', '1', '--seq-length', '32'],
      ['--eval-data', join(folder, 'eval.jsonl'), '--out', join(folder, out), '--log-steps', '1', '--resume'],
      ['--max-steps', String(maxSteps)],
    ].flat();
    const env = { MASTER_ADDR: 'h0', RANKZERO_SECRET: secret };
    return lab.hosts[0]!.start(argv, { env, cwd: folder });
  }

  function lines(out: string): { kind: string; step?: number; worldSize?: number; startStep?: number }[] {
    const file = join(folder, out, 'metrics.jsonl');
    const text = existsSync(file) ? readFileSync(file, 'utf8') : '';
    return text
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line));
  }

  const numSteps = (out: string): number => lines(out).filter(({ kind }) => kind === 'step').length;
  const starts = (out: string) => lines(out).filter(({ kind }) => kind === 'start');

  it('trains on two hosts as one job', async () => {
    const { code, stdout, stderr } = await train('whole', 4).done;
    expect(code, stderr).toBe(0);
    expect(stderr).toContain('rankzero: joining as a rank, 2 (OMPI_COMM_WORLD_SIZE) in all, 1 on this host');
    expect(stderr).toContain('rankzero: 2 ranks of 2 hosts, connected by gloo\n');
    expect(stdout + stderr).not.toContain(secret);
    expect(starts('whole')).toMatchObject([{ worldSize: 2, startStep: 0 }]);
    expect(numSteps('whole')).toBe(4);
    expect(readdirSync(join(folder, 'whole'))).toContain('model.safetensors');
  });

  it('SIGTERM at mpirun leaves no process and a whole checkpoint, from which the next run goes on', async () => {
    // mpirun waits for so many seconds before it passes SIGTERM on, and again before it kills; the other host's daemon as well.
    const { child, done } = train('stopped', 2000, { odls_base_sigkill_timeout: 3 });
    while (child.exitCode === null && numSteps('stopped') < 2) await sleep(50);
    const pids = lab.hosts.flatMap((host) => host.pids);
    child.kill('SIGTERM');
    const { code, stderr } = await done;
    expect(code, stderr).toBe(1);
    await waitForDeath(pids, 20_000);
    for (const host of lab.hosts) expect(host.openPorts).toEqual([]);
    const saved = numSteps('stopped');
    expect((await listCheckpoints(join(folder, 'stopped'))).map(({ step }) => step)).toEqual([saved]);
    const rest = await train('stopped', saved + 2).done;
    expect(rest.code, rest.stderr).toBe(0);
    expect(starts('stopped').map(({ startStep }) => startStep)).toEqual([0, saved]);
    expect(numSteps('stopped')).toBe(saved + 2);
  });
});

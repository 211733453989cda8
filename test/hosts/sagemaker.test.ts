// The SageMaker entry on two hosts, each with an /opt/ml of its own, as SageMaker lays it out, at the same path.
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { listCheckpoints } from '../../src/train/checkpoints.ts';
import { type Host, type HostProcess, Lab, whyNoHosts } from './lab.ts';
import { nameHosts } from './names.ts';

const root = join(import.meta.dirname, '../..');
const secret = 'the-secret-of-the-sagemaker-test';

describe.skipIf(whyNoHosts)(`SageMaker containers${whyNoHosts ? `: ${whyNoHosts}` : ''}`, () => {
  let lab: Lab;
  let names: Disposable;
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-sagemaker-'));
    const command = `#!/bin/sh\nexec node ${root}/dist/cli/main.js "$@"\n`;
    mkdirSync(join(folder, 'bin'));
    mkdirSync(join(folder, 'ml'));
    writeFileSync(join(folder, 'bin/rankzero'), command, { mode: 0o755 });
    lab = new Lab(2);
    names = nameHosts(lab, ['algo-1', 'algo-2']);
  });
  afterAll(() => {
    lab?.[Symbol.dispose]();
    names?.[Symbol.dispose]();
    if (folder) rmSync(folder, { recursive: true });
  });

  const optMl = (job: string, host: number): string => join(folder, job, `algo-${host + 1}`);

  /** An /opt/ml for each host. */
  function lay(job: string, hyperparameters: Record<string, string>): void {
    for (const host of [0, 1]) {
      const write = (path: string, text: string, mode = 0o644): void => {
        const file = join(optMl(job, host), 'input', path);
        mkdirSync(join(file, '..'), { recursive: true });
        writeFileSync(file, text, { mode });
      };
      const hosts = ['algo-1', 'algo-2'];
      const config = { current_host: hosts[host], hosts, network_interface_name: 'e0' };
      write('config/resourceconfig.json', JSON.stringify(config));
      write('config/hyperparameters.json', JSON.stringify(hyperparameters));
      write('data/rankzero-secret/secret', `${secret}\n`, 0o600);
      write('data/eval/eval.jsonl', '{"text": "whale"}\n');
      const data = join(optMl(job, host), 'input/data');
      mkdirSync(join(data, 'train'));
      symlinkSync(join(root, 'examples/data/devils-dictionary.train.jsonl'), join(data, 'train/train.jsonl'));
      symlinkSync(join(root, 'examples/moby-llama'), join(data, 'model'));
    }
  }

  /** What SageMaker does on each host: `ip netns exec` has given it a mount namespace. */
  function start(job: string, host: number): ReturnType<Host['start']> {
    const base = join(folder, 'ml');
    const env = { RANKZERO_SAGEMAKER_DIR: base, PATH: `${join(folder, 'bin')}:${process.env.PATH}` };
    const entry = join(root, 'examples/cluster/sagemaker/train.mjs');
    const argv = ['sh', '-c', 'mount --bind "$0" "$1" && exec "$2"', optMl(job, host), base, entry];
    return lab.hosts[host]!.start(argv, { env });
  }
  const run = (job: string): Promise<HostProcess[]> => Promise.all([0, 1].map((host) => start(job, host).done));

  const small = { device: 'cpu', batch_size: '1', 'seq-length': '"32"', 'log-steps': '1', sagemaker_region: 'nowhere' };
  const steps = (file: string): number[] =>
    readFileSync(file, 'utf8')
      .split('\n')
      .slice(0, -1)
      .map((line) => JSON.parse(line) as { kind: string; step: number })
      .filter(({ kind }) => kind === 'step')
      .map(({ step }) => step);

  const saved = async (job: string, host: number): Promise<number[]> =>
    (await listCheckpoints(join(optMl(job, host), 'checkpoints'))).map(({ step }) => step);

  it('train as one job, and leave model, checkpoints and metrics where SageMaker looks for them', async () => {
    lay('whole', { ...small, max_steps: '4', 'save-steps': '2', 'sample-prompt': '["Define whale (n.)"]' });
    const [first, second] = (await run('whole')) as [HostProcess, HostProcess];
    expect([first.code, second.code], first.stderr + second.stderr).toEqual([0, 0]);
    expect(first.stderr).toMatch(/node 0 \(.*resourceconfig\.json\) of 2 .*, auto ranks here \(.*\), master algo-1/);
    for (const { stdout, stderr } of [first, second]) expect(stdout + stderr).not.toContain(secret);
    expect(readdirSync(join(optMl('whole', 0), 'model')).sort()).toEqual([
      'chat_template.jinja',
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    expect(readdirSync(optMl('whole', 1))).toEqual(['checkpoints', 'input']);
    for (const host of [0, 1]) expect(await saved('whole', host)).toEqual([4, 2]);
    expect(steps(join(optMl('whole', 0), 'output/data/metrics.jsonl'))).toEqual([1, 2, 3, 4]);
  });

  it('stopped by SageMaker, save; started again with what it kept in S3, go on', async () => {
    lay('stopped', { ...small, max_steps: '2000' });
    const metrics = join(optMl('stopped', 0), 'checkpoints/metrics.jsonl');
    const containers = [0, 1].map((host) => start('stopped', host));
    const trains = (): boolean => existsSync(metrics) && steps(metrics).length >= 2;
    while (!trains() && containers.every(({ child }) => child.exitCode === null)) await sleep(50);
    for (const { child } of containers) child.kill('SIGTERM');
    const stopped = await Promise.all(containers.map(({ done }) => done));
    expect(stopped.map(({ code }) => code)).toEqual([143, 143]);
    const last = steps(metrics).length;
    for (const host of [0, 1]) {
      expect(await saved('stopped', host)).toEqual([last]);
      expect(readdirSync(optMl('stopped', host))).toEqual(['checkpoints', 'input']);
    }
    // New instances; files of the same name are one in S3.
    const s3 = join(folder, 's3');
    for (const host of [0, 1]) cpSync(join(optMl('stopped', host), 'checkpoints'), s3, { recursive: true });
    lay('again', { ...small, max_steps: String(last + 2) });
    for (const host of [0, 1]) cpSync(s3, join(optMl('again', host), 'checkpoints'), { recursive: true });
    const rest = await run('again');
    expect(
      rest.map(({ code }) => code),
      rest[0]!.stderr,
    ).toEqual([0, 0]);
    const all = Array.from({ length: last + 2 }, (_, i) => i + 1);
    expect(steps(join(optMl('again', 0), 'output/data/metrics.jsonl'))).toEqual(all);
  });

  it('say in output/failure what was wrong', async () => {
    lay('wrong', { ...small, 'max-stepz': '3' });
    const ended = await run('wrong');
    expect(ended.map(({ code }) => code)).toEqual([1, 1]);
    expect(readFileSync(join(optMl('wrong', 0), 'output/failure'), 'utf8')).toContain('max-stepz: no such option');
  });
});

// The SageMaker entry on two hosts, each with an /opt/ml of its own as SageMaker lays it out, and a file system that both see.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

  /** An /opt/ml for each host, with the shared folder as the channel `checkpoints`, unless it is to be left out. */
  function lay(job: string, hyperparameters: Record<string, string>, channels = ['checkpoints']): void {
    mkdirSync(join(folder, job, 'shared'), { recursive: true });
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
      for (const channel of channels) symlinkSync(join(folder, job, 'shared'), join(data, channel));
    }
  }

  /** What SageMaker does on each host. */
  function start(job: string, host: number): ReturnType<Host['start']> {
    const env = { RANKZERO_SAGEMAKER_DIR: optMl(job, host), PATH: `${join(folder, 'bin')}:${process.env.PATH}` };
    return lab.hosts[host]!.start([join(root, 'examples/cluster/sagemaker/train.mjs')], { env });
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

  it('train as one job, and leave model, checkpoints and metrics where SageMaker looks for them', async () => {
    lay('whole', { ...small, max_steps: '4', 'save-steps': '2', 'sample-prompt': '["Define whale (n.)"]' });
    const [first, second] = (await run('whole')) as [HostProcess, HostProcess];
    expect([first.code, second.code], first.stderr + second.stderr).toEqual([0, 0]);
    expect(first.stderr).toMatch(
      /node 0 \(.*resourceconfig\.json\) of 2 .*, auto ranks here \(--nproc\), master algo-1/,
    );
    for (const { stdout, stderr } of [first, second]) expect(stdout + stderr).not.toContain(secret);
    expect(readdirSync(join(optMl('whole', 0), 'model')).sort()).toEqual([
      'chat_template.jinja',
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    expect(readdirSync(optMl('whole', 1))).toEqual(['input']);
    expect((await listCheckpoints(join(folder, 'whole/shared'))).map(({ step }) => step)).toEqual([4, 2]);
    expect(steps(join(optMl('whole', 0), 'output/data/metrics.jsonl'))).toEqual([1, 2, 3, 4]);
  });

  it('stopped by SageMaker, save; started again, go on', async () => {
    lay('stopped', { ...small, max_steps: '2000' });
    const metrics = join(folder, 'stopped/shared/metrics.jsonl');
    const containers = [0, 1].map((host) => start('stopped', host));
    let trained = 0;
    const ended = Promise.all(containers.map(({ done }) => done));
    while (trained < 2 && containers.every(({ child }) => child.exitCode === null)) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      try {
        trained = steps(metrics).length;
      } catch {
        // It is not there yet.
      }
    }
    for (const { child } of containers) child.kill('SIGTERM');
    expect((await ended).map(({ code }) => code)).toEqual([143, 143]);
    const saved = steps(metrics).length;
    expect((await listCheckpoints(join(folder, 'stopped/shared'))).map(({ step }) => step)).toEqual([saved]);
    expect(readdirSync(optMl('stopped', 0))).toEqual(['input']);
    const hyperparameters = JSON.stringify({ ...small, max_steps: String(saved + 2) });
    for (const host of [0, 1])
      writeFileSync(join(optMl('stopped', host), 'input/config/hyperparameters.json'), hyperparameters);
    const rest = await run('stopped');
    expect(
      rest.map(({ code }) => code),
      rest[0]!.stderr,
    ).toEqual([0, 0]);
    expect(steps(metrics)).toEqual(Array.from({ length: saved + 2 }, (_, i) => i + 1));
  });

  it('say in output/failure what was wrong', async () => {
    lay('wrong', { ...small, 'max-stepz': '3' });
    lay('alone', small, []);
    const [wrong, alone] = await Promise.all([run('wrong'), start('alone', 0).done]);
    const failure = (job: string, host: number): string =>
      readFileSync(join(optMl(job, host), 'output/failure'), 'utf8');
    expect(wrong.map(({ code }) => code)).toEqual([1, 1]);
    expect(failure('wrong', 0)).toContain('max-stepz');
    expect(alone.code).toBe(1);
    expect(failure('alone', 0)).toBe(
      '2 instances need the channel checkpoints: a file system that all of them write to',
    );
  });
});

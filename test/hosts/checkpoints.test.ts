// Fine-tuning on several hosts with `rankzero finetune`: checkpoints on a folder that all see and on one of each host's own, resumed
// by the same and by other numbers of hosts; and a model and data that only rank 0's host has.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type HostProcess, Lab, whyNoHosts } from './lab.ts';
import { secret } from './ranks.ts';

const root = join(import.meta.dirname, '../..');
const folder = mkdtempSync(join(tmpdir(), 'rankzero-several-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let made = 0;
const newFolder = (): string => {
  const path = join(folder, String(made++));
  mkdirSync(path);
  return path;
};

interface Run {
  out: string;
  hosts: number;
  steps: number;
  resume?: boolean;
  /** Steps between checkpoints. */
  every?: number;
  /** What each host has at the path `out`; absent: all see one folder. */
  own?: readonly string[];
  mounts?: Record<string, string>;
}

const model = join(root, 'examples/moby-llama');
const data = join(root, 'examples/data');

async function finetune({
  out,
  hosts,
  steps,
  resume = false,
  every = 2,
  own,
  mounts = {},
}: Run): Promise<HostProcess[]> {
  using lab = new Lab(hosts);
  const argv = (rank: number): string[] => [
    ...[
      process.execPath,
      join(root, 'dist/cli/main.js'),
      'finetune',
      '--nnodes',
      String(hosts),
      '--node-rank',
      String(rank),
    ],
    ...['--master-address', lab.hosts[0]!.address, '--nproc', '1', '--model', model, '--out', out],
    ...[
      '--data',
      join(data, 'devils-dictionary.train.jsonl'),
      '--max-steps',
      String(steps),
      '--save-steps',
      String(every),
    ],
    ...['--batch-size', '2', '--seq-length', '32', '--schedule', 'constant', '--warmup-steps', '0', '--log-steps', '1'],
    ...(resume ? ['--resume'] : []),
  ];
  const runs = lab.hosts.map((host, i) => {
    const there = { ...(own ? { [out]: own[i]! } : {}), ...(i > 0 ? mounts : {}) };
    return host.run(argv(i), {
      env: { RANKZERO_SECRET: secret, OMP_NUM_THREADS: '1' },
      mounts: there,
      timeout: 100_000,
    });
  });
  return await Promise.all(runs); // before the lab goes
}

async function expectFinetune(run: Run): Promise<void> {
  for (const { code, stdout, stderr } of await finetune(run)) expect(code, `${stderr}${stdout}`).toBe(0);
}

/** Losses by step, as the metrics of rank 0 have them. */
function lossesIn(out: string): Record<number, number> {
  const lines = readFileSync(join(out, 'metrics.jsonl'), 'utf8').trim().split('\n');
  const records = lines.map((line) => JSON.parse(line) as { type?: string; step: number; loss?: number });
  return Object.fromEntries(records.flatMap(({ step, loss }) => (loss === undefined ? [] : [[step, loss]])));
}

const files = (dir: string): string[] => readdirSync(dir).sort();

describe.skipIf(whyNoHosts)(`checkpoints of several hosts${whyNoHosts ? ` (${whyNoHosts})` : ''}`, () => {
  it('on folders of each host: each has its own files, and the same hosts go on with the same bits', async () => {
    const out = newFolder();
    const own = [newFolder(), newFolder()];
    await expectFinetune({ out, hosts: 2, steps: 6, every: 3, own });
    expect(readdirSync(out)).toEqual([]);
    for (const [i, dir] of own.entries())
      for (const step of [3, 6])
        expect(files(join(dir, `checkpoint-${step}`))).toEqual([`rank-0000${i}-of-00002.safetensors`, 'state.json']);
    expect(files(own[1]!)).toEqual(['checkpoint-3', 'checkpoint-6']);
    expect(existsSync(join(own[0]!, 'config.json'))).toBe(true);

    const again = [newFolder(), newFolder()];
    for (const [i, dir] of own.entries())
      cpSync(join(dir, 'checkpoint-3'), join(again[i]!, 'checkpoint-3'), { recursive: true });
    await expectFinetune({ out, hosts: 2, steps: 6, every: 3, own: again, resume: true });
    const [whole, resumed] = [lossesIn(own[0]!), lossesIn(again[0]!)];
    expect(resumed[4]).toBe(whole[4]);
    expect(resumed[6]).toBe(whole[6]);

    // A third host has nothing: what it needs is brought there. One host alone lacks what the other had.
    const three = [newFolder(), newFolder(), newFolder()];
    for (const [i, dir] of own.entries())
      cpSync(join(dir, 'checkpoint-3'), join(three[i]!, 'checkpoint-3'), { recursive: true });
    await expectFinetune({ out, hosts: 3, steps: 4, every: 3, own: three, resume: true });
    expect(files(join(three[2]!, 'checkpoint-3')).length).toBe(3);
    expect(Object.keys(lossesIn(three[0]!))).toEqual(['4']);

    const alone = newFolder();
    cpSync(join(own[0]!, 'checkpoint-3'), join(alone, 'checkpoint-3'), { recursive: true });
    const [failed] = await finetune({ out: alone, hosts: 1, steps: 6, every: 3, resume: true });
    expect(failed!.code).toBe(1);
    expect(failed!.stderr).toContain('rank-00001-of-00002.safetensors');
  });

  it('on a folder that all see: other numbers of hosts go on, and nothing is left over', async () => {
    const out = newFolder();
    await expectFinetune({ out, hosts: 2, steps: 2 });
    expect(files(join(out, 'checkpoint-2'))).toEqual([
      'rank-00000-of-00002.safetensors',
      'rank-00001-of-00002.safetensors',
      'state.json',
    ]);
    await expectFinetune({ out, hosts: 1, steps: 4, resume: true });
    expect(files(join(out, 'checkpoint-4'))).toEqual(['rank-00000-of-00001.safetensors', 'state.json']);
    await expectFinetune({ out, hosts: 3, steps: 5, resume: true });
    expect(Object.keys(lossesIn(out))).toEqual(['1', '2', '3', '4', '5']);
    expect(files(out).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  it('a model and data on the host of rank 0 alone are enough', async () => {
    const [out, everywhere] = [newFolder(), newFolder()];
    const before = files(tmpdir()).filter((name) => name.startsWith('rankzero-files-'));
    await expectFinetune({ out, hosts: 2, steps: 2, mounts: { [model]: 'empty', [data]: 'empty' } });
    await expectFinetune({ out: everywhere, hosts: 2, steps: 2 });
    expect(lossesIn(out)).toEqual(lossesIn(everywhere));
    expect(files(tmpdir()).filter((name) => name.startsWith('rankzero-files-'))).toEqual(before);
  });
});

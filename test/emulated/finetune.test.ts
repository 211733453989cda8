// `rankzero finetune` on two emulated devices: loading, training, evaluation, checkpoints, samples, the saved model. What it
// computes is what CPU ranks compute.
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadSafetensors, type Tensor } from '../../src/index.ts';
import type { TraceEvent } from '../../src/profile/trace.ts';
import { expectFinetune, type FinetuneResult, relativeError, workFolder } from '../multi/finetune_helpers.ts';
import { relativeError as tensorError } from '../reference/cases.ts';
import { available, buildEmulated, nodeVariables, runNode } from './emulated.ts';
import { tinyModel } from './tiny_model.ts';

const launcher = join(import.meta.dirname, '../../dist/cli/main.js');

describe.skipIf(!available)('finetune on emulated devices', () => {
  let dir: string;
  let model: string;
  let cpu: FinetuneResult;
  let cuda: FinetuneResult;
  const options = {
    batchSize: 2,
    epochs: 1,
    maxSteps: 5,
    seqLength: 32,
    lossOn: 'all' as const,
    schedule: 'constant' as const,
  };
  const devices = (seed: number, count: number) => ({
    env: { ...nodeVariables(seed), RANKZERO_EMULATED_DEVICES: String(count) },
    timeout: 200_000,
  });
  const onCpu = (more: object) => expectFinetune(2, dir, { ...options, model, ...more });
  const onDevices = (seed: number, more: object) =>
    expectFinetune(2, dir, { ...options, model, device: 'cuda', ...more }, devices(seed, 2));
  const weights = (out: string): Promise<Buffer> => readFile(join(dir, out, 'model.safetensors'));

  const expectSameModel = async (out: string, wanted: string): Promise<void> => {
    const [got, want] = await Promise.all(
      [out, wanted].map((name) => loadSafetensors(join(dir, name, 'model.safetensors'))),
    );
    expect([...got!.keys()]).toEqual([...want!.keys()]);
    const values = async (tensor: Tensor | undefined) => Array.from(await tensor!.data(), Number);
    for (const [name, tensor] of want!)
      expect(tensorError(await values(got!.get(name)), await values(tensor)), name).toBeLessThan(1e-4);
  };

  beforeAll(async () => {
    buildEmulated();
    dir = await workFolder(20, 3);
    model = await tinyModel(join(dir, 'tiny'));
    const more = {
      saveSteps: 2,
      evalData: join(dir, 'eval.jsonl'),
      samplePrompts: ['Define whale'],
    };
    cpu = await onCpu({ ...more, out: 'cpu' });
    cuda = await onDevices(1, { ...more, device: 'auto', out: 'cuda' });
  }, 600_000);
  afterAll(() => rm(dir, { recursive: true }));

  it('learns as CPU ranks do', () => {
    const norms = ({ steps }: FinetuneResult): number[] => steps.map(({ gradNorm }) => gradNorm);
    expect(relativeError(cuda.losses, cpu.losses)).toBeLessThan(1e-6);
    expect(relativeError(norms(cuda), norms(cpu))).toBeLessThan(1e-5);
    const losses = ({ evals }: FinetuneResult): number[] => evals.map(({ loss }) => loss);
    expect(losses(cuda).length).toBe(1);
    expect(relativeError(losses(cuda), losses(cpu))).toBeLessThan(1e-6);
    expect(cuda.samples).toEqual(cpu.samples);
  });

  it('saves the model that CPU ranks save', () => expectSameModel('cuda', 'cpu'));

  it('divides layers over devices, and saves them whole', async () => {
    const divided = await onDevices(4, { tp: 2, batchSize: 4, out: 'divided' });
    expect(relativeError(divided.losses, cpu.losses)).toBeLessThan(1e-6);
    await expectSameModel('divided', 'cpu');
  });

  it('says on what, and how much of it', () => {
    expect(cpu.start).toMatchObject({ device: 'cpu', deviceReason: 'as asked', backend: 'shm' });
    expect(cuda.start).toMatchObject({ device: 'cuda', backend: 'nccl' });
    expect(cuda.start!.deviceReason).toBe('auto: emulated device on rank 0, one for each rank');
    for (const { deviceMemoryBytes: used, deviceReservedBytes: reserved } of cuda.steps) {
      expect(used).toBeGreaterThan(1e5);
      expect(reserved).toBeGreaterThanOrEqual(used!);
    }
    expect(cuda.summary!.peakDeviceMemoryBytes).toBeGreaterThanOrEqual(cuda.steps.at(-1)!.deviceMemoryBytes!);
    expect(cpu.steps[0]!.deviceMemoryBytes).toBe(undefined);
  });

  it('resumes bit for bit', async () => {
    const resume = join(dir, 'cuda/checkpoint-2');
    const rest = await onDevices(2, { resume, out: 'rest', profile: join(dir, 'profile'), profileSteps: '4' });
    expect(rest.start).toMatchObject({ startStep: 2, device: 'cuda' });
    expect(rest.losses).toEqual(cuda.losses.slice(2));
    expect((await weights('rest')).equals(await weights('cuda'))).toBe(true);
  });

  // Of step 4 above.
  it('has the work of the devices in its profile', async () => {
    const text = await readFile(join(dir, 'profile/trace.json'), 'utf8');
    const events: TraceEvent[] = JSON.parse(text).traceEvents;
    for (const rank of [0, 1]) {
      const own = events.filter(({ pid }) => pid === rank);
      const tracks = own.filter(({ name }) => name === 'thread_name').map(({ args, tid }) => [args!.name, tid]);
      const slices = (track: string): TraceEvent[] => {
        const [, tid] = tracks.find(([name]) => name === track)!;
        return own.filter((event) => event.ph === 'X' && event.tid === tid).sort((a, b) => a.ts! - b.ts!);
      };
      const count = (track: string, name: string): number => slices(track).filter((s) => s.name === name).length;
      // Of a layer: q, k and v together, gate and up together, and the two behind them.
      expect(count('cuda compute', 'linear_forward')).toBe(4 * 2);
      expect(count('cuda compute', 'linear_cross_entropy')).toBe(1);
      expect(count('cuda compute', 'adamw')).toBe(5);
      // The root, and what backward begins with, are kept in between; backward does not read the embedding.
      const gathers = { 'model.embed_tokens': 1, 'model.layers.0': 2, 'model.layers.1': 2, lm_head: 1, root: 1 };
      for (const [unit, times] of Object.entries(gathers)) {
        expect(count('gather', `all_gather ${unit}`), unit).toBe(times);
        expect(count('comm', `reduce_scatter ${unit}`), unit).toBe(1);
      }
      const gather = slices('gather').find(({ name }) => name === 'all_gather model.layers.0')!;
      expect(gather).toMatchObject({ cat: 'collective', args: { bytes: expect.any(Number), dtype: 'float32' } });
      for (const track of ['cuda compute', 'comm', 'gather'])
        for (const [i, { ts }] of slices(track).slice(1).entries())
          expect(ts!).toBeGreaterThanOrEqual(slices(track)[i]!.ts! + slices(track)[i]!.dur! - 0.001);
    }
    const table = await readFile(join(dir, 'profile/profile.txt'), 'utf8');
    expect(table).toMatch(/^linear_forward +cuda compute +8 /m);
    expect(table).toMatch(/exposed communication: (?!0\.0 ms)/);
  });

  it('reads the checkpoints of CPU ranks, and they read its own', async () => {
    const there = await onDevices(3, { resume: join(dir, 'cpu/checkpoint-4'), out: 'there' });
    const back = await onCpu({ resume: join(dir, 'cuda/checkpoint-4'), out: 'back' });
    expect(relativeError(there.losses, cpu.losses.slice(4))).toBeLessThan(1e-6);
    expect(relativeError(back.losses, cpu.losses.slice(4))).toBeLessThan(1e-6);
  });

  const command = (more: string[], count: number) => {
    const args = ['--model', model, '--data', join(dir, 'train.jsonl'), '--out', join(dir, 'command'), ...more];
    return runNode([launcher, 'finetune', ...args], 1, { RANKZERO_EMULATED_DEVICES: String(count) });
  };

  it('is refused where ranks would share a device', async () => {
    const { code, stderr } = await command(['--device', 'cuda', '--nproc', '3'], 2);
    expect(code).toBe(1);
    expect(stderr).toContain(
      'device cuda cannot be used: ranks 0 and 2 would share one device (emulated device): ' +
        '3 ranks of this host want as many devices, but 2 are visible',
    );
  });

  it('has a rank for each device with --nproc gpu', async () => {
    const counted = await command(['--max-steps', '1', '--batch-size', '2', '--nproc', 'gpu'], 2);
    expect(counted.code, counted.stderr).toBe(0);
    expect(counted.stdout).toMatch(/, 2 ranks \(/);
    const none = await command(['--nproc', 'gpu'], 0);
    expect(none.code).toBe(1);
    expect(none.stderr).toContain('--nproc gpu: no GPU is visible on this host');
  });

  it('is refused without a device, and auto takes the CPU and says why', async () => {
    const refused = await command(['--device', 'cuda'], 0);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/device cuda cannot be used: there is no device/);
    const auto = await command(['--max-steps', '1', '--batch-size', '2', '--nproc', '2'], 1);
    expect(auto.code, auto.stderr).toBe(0);
    expect(auto.stdout).toMatch(/^cpu, auto: ranks 0 and 1 would share one device/m);
  });
});

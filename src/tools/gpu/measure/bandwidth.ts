// What memory and its links give: the ceilings of everything that moves bytes.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { native } from '../../../native.ts';
import { dtypeNumber } from '../../../tensor/dtype.ts';
import type { Measure, PartOptions, Unit } from '../part.ts';
import { withOperands } from './operands.ts';
import { medianTime, seconds } from './timing.ts';

export const copyName = 'device copy, read and written';

export async function bandwidthUnits({ seed, size }: PartOptions): Promise<Unit[]> {
  const bytes = size === 'small' ? 1 << 14 : 1 << 30;
  const samples = size === 'small' ? 2 : 20;
  const unit = (name: string, run: () => Measure[]): Unit => ({
    name,
    run: () => ({ unit: name, failures: [], measures: run() }),
  });
  return [
    unit('device', () => device(seed, bytes, samples)),
    unit('pinned memory', () => pinned(size === 'small' ? 1 << 14 : 1 << 28, samples)),
    unit('host tensors', () => hostTensors(bytes, Math.min(samples, 5))),
    unit('file', () => file(bytes, Math.min(samples, 5))),
  ];
}

function device(seed: number, bytes: number, samples: number): Measure[] {
  return withOperands(seed, (operands) => {
    const numel = bytes / 4;
    const [x, y] = [operands.normal(numel, 'float32'), operands.empty(numel, 'float32')];
    const sum = operands.empty(1, 'float32');
    const measure = (name: string, moved: number, run: () => void): Measure => {
      const { milliseconds, spread } = medianTime([run], { samples });
      return { name, value: moved / milliseconds / 1e6, unit: 'GB/s', milliseconds, spread };
    };
    return [
      measure(copyName, 2 * bytes, () => native.copy(y, x)),
      measure('device fill, written', bytes, () => native.fill(y, 1)),
      measure('device sum of squares, read', bytes, () => native.sumSquares(sum, x, false)),
    ];
  });
}

function pinned(bytes: number, samples: number): Measure[] {
  const measure = (name: string, toDevice: boolean): Measure => {
    native.cudaPinnedCopy(bytes, toDevice);
    const times = Array.from({ length: samples }, () => native.cudaPinnedCopy(bytes, toDevice)).sort((a, b) => a - b);
    native.cudaForgetTimestamps();
    const milliseconds = times[samples >> 1]!;
    return { name, value: bytes / milliseconds / 1e6, unit: 'GB/s', milliseconds };
  };
  return [measure('pinned host to device', true), measure('device to pinned host', false)];
}

/** Ordinary host memory, which goes through the ring of pinned slots. */
function hostTensors(bytes: number, samples: number): Measure[] {
  const numel = bytes / 4;
  const [here, there] = [0, 1].map((on) => native.tensorEmpty(numel, dtypeNumber('float32'), 0, on)) as [
    number,
    number,
  ];
  native.fill(here, 1);
  native.fill(there, 2);
  const settle = (): void => {
    native.streamSynchronize(native.computeStream(0));
    native.streamSynchronize(native.computeStream(1));
  };
  const measure = (name: string, to: number, from: number): Measure => {
    const times: number[] = [];
    for (let i = -1; i < samples; i++) {
      settle();
      const time = seconds(() => {
        native.copy(to, from);
        settle();
      });
      if (i >= 0) times.push(time);
    }
    times.sort((a, b) => a - b);
    const median = times[samples >> 1]!;
    return { name, value: bytes / median / 1e9, unit: 'GB/s', milliseconds: 1000 * median };
  };
  const measures = [measure('host tensor to device', there, here), measure('device to host tensor', here, there)];
  native.tensorRelease(here);
  native.tensorRelease(there);
  return measures;
}

/** A file that the page cache holds, into host memory, with the threads of the loader. */
function file(bytes: number, samples: number): Measure[] {
  const folder = mkdtempSync(join(tmpdir(), 'rankzero-gpu-'));
  const float32 = dtypeNumber('float32');
  const tensor = native.tensorEmpty(bytes / 4, float32, 0);
  try {
    const path = join(folder, 'bytes');
    native.randomFill(tensor, 1n, 'file', 0, false, 0, 1);
    const made = native.fileCreate(path);
    native.fileWrite(made, 0, tensor, float32);
    native.streamSynchronize(native.computeStream(0));
    native.fileClose(made);
    const opened = native.fileOpen(path);
    const times: number[] = [];
    for (let i = -1; i < samples; i++) {
      const time = seconds(() => {
        native.fileRead(opened, 0, tensor, float32);
        native.streamSynchronize(native.computeStream(0));
      });
      if (i >= 0) times.push(time);
    }
    native.fileClose(opened);
    times.sort((a, b) => a - b);
    const median = times[samples >> 1]!;
    return [
      {
        name: 'file in the page cache to a host tensor',
        value: bytes / median / 1e9,
        unit: 'GB/s',
        milliseconds: 1000 * median,
      },
    ];
  } finally {
    native.tensorRelease(tensor);
    rmSync(folder, { recursive: true, force: true });
  }
}

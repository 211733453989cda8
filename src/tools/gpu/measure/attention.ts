// Attention, causal, by head size and length: the arithmetic of the visible pairs, two GEMMs forward and five backward.
import { type AttentionKernels, native } from '../../../native.ts';
import { isHopper, withAttention } from '../attention.ts';
import type { Measure, PartOptions, Unit, UnitResult } from '../part.ts';
import { withOperands } from './operands.ts';
import { medianTime } from './timing.ts';

interface Shape {
  headDim: number;
  heads: number;
  kvHeads: number;
  length: number;
  sequences: number;
  window: number;
}

function shapesOf(size: PartOptions['size']): Shape[] {
  if (size === 'small') return [{ headDim: 64, heads: 2, kvHeads: 1, length: 40, sequences: 2, window: 0 }];
  const tokens = 16_384;
  const shapes: Shape[] = [];
  for (const headDim of [64, 96, 128])
    for (const length of [1024, 4096, 16_384])
      shapes.push({
        headDim,
        heads: headDim === 64 ? 32 : 16,
        kvHeads: 8,
        length,
        sequences: tokens / length,
        window: 0,
      });
  shapes.push({ headDim: 128, heads: 16, kvHeads: 16, length: 4096, sequences: 4, window: 0 });
  shapes.push({ headDim: 128, heads: 16, kvHeads: 8, length: 4096, sequences: 4, window: 1024 });
  shapes.push({ headDim: 256, heads: 8, kvHeads: 8, length: 4096, sequences: 4, window: 0 });
  return shapes;
}

const nameOf = ({ headDim, heads, kvHeads, length, sequences, window }: Shape): string =>
  `heads ${heads}/${kvHeads}×${headDim}, ${sequences}×${length}${window ? `, window ${window}` : ''}`;

/** By the kernels for all devices, or those for Hopper where they are and suit. */
export async function attentionUnits(options: PartOptions, kernels: AttentionKernels): Promise<Unit[]> {
  const all = shapesOf(options.size);
  const shapes = kernels === 'mma' ? all : isHopper() ? all.filter(({ headDim }) => headDim <= 128) : [];
  return shapes.map((shape) => {
    const name = `${nameOf(shape)}, ${kernels}`;
    return { name, run: () => withAttention(kernels, () => measure(shape, name, options)) };
  });
}

function visiblePairs({ length, sequences, window }: Shape): number {
  const seen = window > 0 ? Math.min(window, length) : length;
  return sequences * ((seen * (seen + 1)) / 2 + (length - seen) * seen);
}

function measure(shape: Shape, unit: string, { seed, size, peak }: PartOptions): UnitResult {
  const { headDim, heads, kvHeads, length, sequences, window } = shape;
  const rows = length * sequences;
  const samples = size === 'small' ? 2 : 15;
  const flops = 4 * visiblePairs(shape) * heads * headDim;
  return withOperands(seed, (o) => {
    const [wide, narrow] = [rows * heads * headDim, rows * kvHeads * headDim];
    const [q, k, v, dO] = [o.normal(wide), o.normal(narrow), o.normal(narrow), o.normal(wide)];
    const [out, lse] = [o.empty(wide), o.empty(heads * rows, 'float32')];
    const [dq, dk, dv] = [o.empty(wide), o.empty(narrow), o.empty(narrow)];
    const cu = o.int32(Array.from({ length: sequences + 1 }, (_, i) => i * length));
    const scale = 1 / Math.sqrt(headDim);
    const forward = (): void =>
      native.attentionForward(out, lse, q, k, v, cu, cu, rows, rows, sequences, heads, kvHeads, headDim, window, scale);
    const backward = (): void =>
      native.attentionBackward(
        dq,
        dk,
        dv,
        dO,
        out,
        q,
        k,
        v,
        lse,
        cu,
        rows,
        sequences,
        heads,
        kvHeads,
        headDim,
        window,
        scale,
      );
    const timed = (name: string, run: () => void, work: number): Measure => {
      const { milliseconds, spread } = medianTime([run], { samples });
      const value = work / milliseconds / 1e9;
      return {
        name: `${unit} ${name}`,
        value,
        unit: 'TFLOP/s',
        milliseconds,
        spread,
        ...(peak ? { fraction: value / peak, of: 'peak' } : {}),
      };
    };
    return {
      unit,
      failures: [],
      measures: [timed('forward', forward, flops), timed('backward', backward, 2.5 * flops)],
    };
  });
}

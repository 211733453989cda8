// GEMMs at the shapes of a 1B-class model and square ones, against the device's peak and against the best of what cuBLASLt
// proposes: its first proposal is what the ops take.
import { native } from '../../../native.ts';
import type { Measure, PartOptions, Unit, UnitResult } from '../part.ts';
import { withOperands } from './operands.ts';
import { medianTime } from './timing.ts';

/** How many of the library's proposals are tried. */
const proposals = 8;

type Shape = [name: string, rows: number, inside: number, out: number];

const fullShapes: Shape[] = [
  ['4096³', 4096, 4096, 4096],
  ['8192³', 8192, 8192, 8192],
  ['hidden to hidden', 8192, 2048, 2048],
  ['hidden to key or value', 8192, 2048, 512],
  ['hidden to query, key and value', 8192, 2048, 3072],
  ['hidden to inner', 8192, 2048, 8192],
  ['hidden to gate and up', 8192, 2048, 16_384],
  ['inner to hidden', 8192, 8192, 2048],
  ['head', 1024, 2048, 128_256],
];
const smallShapes: Shape[] = [['tiny', 32, 24, 16]];

const kinds = ['forward', 'backward input', 'backward weight'] as const;

export async function gemmUnits(options: PartOptions): Promise<Unit[]> {
  const shapes = options.size === 'small' ? smallShapes : fullShapes;
  const units = shapes.map((shape) => ({
    name: `bfloat16 ${shape[0]}`,
    run: () => measureGemms(shape, 'bfloat16', options),
  }));
  const square = shapes[0]!;
  return [...units, { name: `float32 ${square[0]}`, run: () => measureGemms(square, 'float32', options) }];
}

function measureGemms(
  [name, rows, inside, out]: Shape,
  dtype: 'bfloat16' | 'float32',
  { seed, size, peak }: PartOptions,
): UnitResult {
  const samples = size === 'small' ? 2 : 20;
  const flops = 2 * rows * inside * out;
  const measures = withOperands(seed, (operands) => {
    const sets = [0, 1].map(() => {
      const [x, w, dy] = [
        operands.normal(rows * inside, dtype),
        operands.normal(out * inside, dtype, 0.02),
        operands.normal(rows * out, dtype),
      ];
      const [y, dx, dw] = [
        operands.empty(rows * out, dtype),
        operands.empty(rows * inside, dtype),
        operands.empty(out * inside, dtype),
      ];
      return {
        forward: () => native.linearForward(y, x, w, 0, 0, rows, inside, out),
        'backward input': () => native.linearBackwardInput(dx, dy, w, 0, rows, inside, out),
        'backward weight': () => native.linearBackwardWeight(dw, 0, dy, x, rows, inside, out, false),
      };
    });
    return kinds.flatMap((kind) => {
      const runs = sets.map((set) => set[kind]);
      const { milliseconds, spread } = medianTime(runs, { samples });
      const rate = (time: number): number => flops / time / 1e9;
      const best = Math.min(milliseconds, ...bestOfProposals(runs, size === 'small' ? 1 : 7));
      const label = `${name} (${rows}, ${inside}, ${out}) ${dtype} ${kind}`;
      const known = dtype === 'bfloat16' && peak ? { fraction: rate(milliseconds) / peak, of: 'peak' } : {};
      const ours: Measure = {
        name: label,
        value: rate(milliseconds),
        unit: 'TFLOP/s',
        milliseconds,
        spread,
        ...known,
      };
      const theirs: Measure = {
        name: `${label}, cuBLASLt's best`,
        value: rate(best),
        unit: 'TFLOP/s',
        milliseconds: best,
        fraction: best / milliseconds,
        of: 'it by the op',
      };
      return [ours, theirs];
    });
  });
  return { unit: `${dtype} ${name}`, failures: [], measures };
}

function bestOfProposals(runs: readonly (() => void)[], samples: number): number[] {
  const times: number[] = [];
  const before = native.cudaSetGemmProposal(1);
  try {
    for (let proposal = 1; proposal < proposals; proposal++) {
      native.cudaSetGemmProposal(proposal);
      times.push(medianTime(runs, { samples }).milliseconds);
    }
  } finally {
    native.cudaSetGemmProposal(before);
  }
  return times;
}

// Every op that the device has, by the op table: an op without cases is a failure, so that a new one cannot be forgotten.
import { type AttentionKernels, native } from '../../native.ts';
import { isHopper, withAttention } from './attention.ts';
import { adapterCases } from './cases/adapters.ts';
import { attentionCases } from './cases/attention.ts';
import { elementwiseCases } from './cases/elementwise.ts';
import { layerCases } from './cases/layers.ts';
import { lossCases } from './cases/losses.ts';
import { optimizerCases } from './cases/optimizers.ts';
import { checkCase } from './check.ts';
import { isDeviceLost, withSetting } from './device.ts';
import { Draw } from './draw.ts';
import type { PartOptions, Unit, UnitResult } from './part.ts';

const cases = {
  ...elementwiseCases,
  ...optimizerCases,
  ...layerCases,
  ...adapterCases,
  ...attentionCases,
  ...lossCases,
};
const mostFailures = 6;

/** What a device is not asked for: weights are quantised and cut in host memory, and a device widens them for its own GEMMs. */
export const hostOps: ReadonlySet<string> = new Set([
  'quantize_weight',
  'slice_quantized',
  'quantized_linear_forward',
  'quantized_linear_backward_input',
]);

export async function opUnits(options: PartOptions): Promise<Unit[]> {
  const onDevice = native.opNames(1);
  const missing = native.opNames(0).filter((op) => !onDevice.includes(op) && !hostOps.has(op));
  const table: Unit = {
    name: 'table of ops',
    run: () => ({
      unit: 'table of ops',
      cases: onDevice.length,
      failures: [
        ...missing.map((op) => `${op} exists on the CPU only`),
        ...onDevice.filter((op) => !Object.hasOwn(cases, op)).map((op) => `${op} has no cases in src/tools/gpu/cases`),
      ],
    }),
  };
  const known = onDevice.filter((op) => Object.hasOwn(cases, op));
  return [
    table,
    ...known.filter((op) => !isAttention(op)).map((op) => ({ name: op, run: () => checkOp(op, op, options) })),
    ...known
      .filter((op) => op === 'linear_cross_entropy')
      .map((op) => {
        const name = `${op} float32 logits`;
        return { name, run: () => withSetting(native.cudaSetNarrowLogits, false, () => checkOp(op, name, options)) };
      }),
    ...known
      .filter(isAttention)
      .flatMap((op) => [attentionUnit(op, 'mma', false, options), attentionUnit(op, 'mma', true, options)]),
  ];
}

/** Attention by the kernels for Hopper; none where there is no Hopper. */
export async function hopperUnits(options: PartOptions): Promise<Unit[]> {
  const attention = isHopper() ? native.opNames(1).filter(isAttention) : [];
  return attention.map((op) => attentionUnit(op, 'hopper', true, options));
}

const isAttention = (op: string): boolean => op.startsWith('attention_');

/** `aligned`: all addresses are, as tensor cores want them; else some. */
function attentionUnit(op: string, kernels: AttentionKernels, aligned: boolean, options: PartOptions): Unit {
  const name = aligned ? `${op} ${kernels}` : op;
  return { name, run: () => withAttention(kernels, () => checkOp(op, name, options, aligned)) };
}

function checkOp(op: string, unit: string, { seed, size }: PartOptions, aligned = false): UnitResult {
  const draw = new Draw(seed, op, size);
  const errors: Record<string, number> = {};
  const failures: string[] = [];
  let count = 0;
  for (const each of cases[op]!(draw)) {
    // Off alignment every other time: 1 to 7 elements.
    const shift = aligned || count % 2 === 0 ? 0 : draw.integers(1, 1, 8)[0]!;
    count++;
    try {
      const { dtype, error, failure } = checkCase(op, each, shift);
      if (!(error <= (errors[dtype] ?? 0))) errors[dtype] = error;
      errors[dtype] ??= 0;
      if (failure !== undefined) failures.push(failure);
    } catch (error) {
      failures.push(`${each.label}: ${(error as Error).message}`);
      if (isDeviceLost(error))
        throw Object.assign(error as Error, { result: { unit, cases: count, errors, failures } });
    }
    if (failures.length >= mostFailures) break;
  }
  if (count === 0) failures.push('no case was run');
  return { unit, cases: count, errors, failures };
}

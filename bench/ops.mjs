// How fast are single ops? Ours against torch's, at the shapes of the medium model. See bench/README.md.
import { compareSides } from './lib/compare.mjs';
import { ourJob, peerJob, runJob } from './lib/job.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';

const settings = readOptions('Microseconds of single ops.', {
  dtype: { default: ['float32', 'bfloat16'], help: 'float32, bfloat16' },
  threads: { default: 1, help: 'compute threads' },
  rows: { default: 512, quick: 32, help: 'tokens of all ops but attention' },
  lengths: { default: [128, 512, 2048], quick: [32], help: 'lengths of the sequences of attention' },
  only: { default: '', help: 'ops whose name contains this' },
  samples: { default: 15, quick: 2, help: 'samples of each op in a run' },
  'sample-ms': { default: 20, quick: 1, help: 'least time of a sample' },
});
const { python, repetitions, calm, rows: tokens, lengths, threads } = settings;
// The medium model: test/multi/fixtures/make_model.mjs. --quick has its structure.
const model = settings.quick
  ? { hidden: 64, inner: 176, vocab: 500, heads: 4, kvHeads: 2, headDim: 16, layerNumel: 50_000 }
  : { hidden: 1024, inner: 2816, vocab: 32000, heads: 16, kvHeads: 8, headDim: 64, layerNumel: 11_800_000 };

/** Each with `work`: floating-point operations of GEMMs, or bytes that must be moved at least. */
function casesOf(dtype) {
  const { hidden, inner, vocab, heads, kvHeads, headDim, layerNumel } = model;
  const size = dtype === 'float32' ? 4 : 2;
  const cases = [];
  const add = (op, name, sizes, work) => cases.push({ name: `${op} ${name} ${dtype}`, op, dtype, ...sizes, work });
  const linears = {
    'hidden→hidden': [hidden, hidden],
    'hidden→inner': [hidden, inner],
    'inner→hidden': [inner, hidden],
  };
  for (const op of ['linear_forward', 'linear_backward_input', 'linear_backward_weight'])
    for (const [name, [from, to]] of Object.entries(linears))
      add(op, name, { rows: tokens, in: from, out: to }, { flops: 2 * tokens * from * to });
  for (const length of lengths) {
    const rows = Math.max(...lengths);
    const flops = 2 * rows * length * heads * headDim; // half of two GEMMs, as it is causal
    const sizes = { rows, length, heads, kvHeads, headDim };
    add('attention_forward', `${rows / length}×${length}`, sizes, { flops });
    add('attention_backward', `${rows / length}×${length}`, sizes, { flops: 2.5 * flops });
  }
  const bytes = (operands, dim) => ({ bytes: operands * tokens * dim * size });
  add('rms_norm_forward', `${tokens}×${hidden}`, { rows: tokens, dim: hidden }, bytes(2, hidden));
  add('rms_norm_backward', `${tokens}×${hidden}`, { rows: tokens, dim: hidden }, bytes(3, hidden));
  add('swiglu_forward', `${tokens}×${inner}`, { rows: tokens, dim: inner }, bytes(3, inner));
  add('swiglu_backward', `${tokens}×${inner}`, { rows: tokens, dim: inner }, bytes(5, inner));
  add(
    'head_and_loss',
    `${tokens}×${vocab}`,
    { rows: tokens, dim: hidden, vocab },
    { flops: 6 * tokens * hidden * vocab },
  );
  if (dtype === 'float32') {
    // Ours has logits and optimizer state in float32 always.
    add('cross_entropy', `${tokens}×${vocab}`, { rows: tokens, vocab }, bytes(2, vocab));
    add('adamw', `${layerNumel}`, { numel: layerNumel }, { bytes: 7 * 4 * layerNumel });
  }
  return cases.filter(({ name }) => name.includes(settings.only));
}

const cases = settings.dtype.flatMap(casesOf);
const args = [JSON.stringify(cases.map(({ work, ...rest }) => rest)), threads, settings.samples, settings['sample-ms']];
const timesOf = ({ marks }) => marks[0].times;
const sides = { rankzero: async () => timesOf(await runJob(ourJob('ops.mjs', 1, args))) };
if (python) sides.torch = async () => timesOf(await runJob(await peerJob(python, 'torch_ops.py', 0, args, threads)));

const byName = new Map(cases.map((entry) => [entry.name, entry]));
const label = (name) => {
  const { work, name: _, ...rest } = byName.get(name);
  return { case: name, ...rest, ...work };
};
const metrics = { least: { less: true }, median: { less: true } };
const results = await compareSides(sides, { repetitions, calm, metrics, label });

const rows = [['op', 'µs', 'torch, µs', 'GFLOP/s', 'GB/s', 'rankzero is × (min–max)']];
for (const { case: name, sides: measured, ratios, flops, bytes } of results) {
  const { least } = measured.rankzero;
  const rate = (work) => (work ? Number((work / least.median / 1000).toPrecision(3)) : '');
  rows.push([
    name,
    least.median,
    measured.torch?.least?.median,
    rate(flops),
    rate(bytes),
    formatRatio(ratios.torch?.least),
  ]);
}
report('ops', settings, results, rows);

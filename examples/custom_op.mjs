// Ops of one's own, from kernels in JavaScript and from ops of the package, in a small network that trains.
//   node examples/custom_op.mjs, or: npx rankzero run --nproc 2 examples/custom_op.mjs [steps]
import {
  AdamW,
  crossEntropy,
  defineOp,
  dist,
  FullyShardedDataParallel as FSDP,
  gradCheck,
  Linear,
  Module,
  Parameter,
  scope,
  Tensor,
} from 'rankzero';

// y = gain · relu(x)², with a gain for each feature: x (rows, dim), gain (dim). Kernels get and fill Float32Arrays.
const squaredRelu = defineOp({
  name: 'squared_relu',
  hostForward({ output }, x, gain) {
    for (let i = 0; i < x.length; i++) output[i] = gain[i % gain.length] * Math.max(x[i], 0) ** 2;
  },
  hostBackward({ gradOut, grads: [dx, dGain] }, x, gain) {
    for (let i = 0; i < x.length; i++) {
      const k = i % gain.length;
      const positive = Math.max(x[i], 0);
      if (dx) dx[i] = gradOut[i] * gain[k] * 2 * positive; // no array where no gradient is wanted
      if (dGain) dGain[k] += gradOut[i] * positive ** 2;
    }
  },
});

// Values as bfloat16 would round them, with a gradient that passes straight through. From ops of the package.
const rounded = defineOp({
  name: 'rounded',
  forward: (_ctx, x) => x.to('bfloat16').to('float32'),
  backward: (_ctx, gradOut) => [gradOut],
});

// Throws where a backward is wrong.
const leaf = (values, shape) => Tensor.from(values, shape, { requiresGrad: true });
gradCheck(squaredRelu, [leaf([1, 2, -3, 0.5, -1, 4], [2, 3]), leaf([1, 0.5, -2], [3])]);

class Network extends Module {
  up = new Linear(2, 32, { bias: true, std: 0.5 });
  gain = new Parameter([32], 'float32', { kind: 'constant', value: 1 });
  down = new Linear(32, 2, { bias: true, std: 0.1 });

  forward(x) {
    return scope(() => this.down.forward(squaredRelu(rounded(this.up.forward(x)), this.gain)));
  }
}

await dist.initProcessGroup();
const [rank, world] = [dist.getRank(), dist.getWorldSize()];
const [steps = '60'] = process.argv.slice(2);

// Points of a square, and whether they lie inside a circle; every rank has its part of them.
const points = Array.from({ length: 256 }, (_, i) => [(i % 16) / 7.5 - 1, Math.floor(i / 16) / 7.5 - 1]);
const mine = points.filter((_, i) => i % world === rank);
const x = Tensor.from(mine.flat(), [mine.length, 2]);
const inside = Tensor.from(
  mine.map(([a, b]) => Number(a * a + b * b < 0.6)),
  [mine.length],
  { dtype: 'int64' },
);

const fsdp = new FSDP(new Network());
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 0.02 });
for (let step = 1; step <= Number(steps); step++) {
  scope(() => {
    const loss = crossEntropy(fsdp.forward(x), inside);
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    if (rank === 0 && step % 10 === 1) console.log(`step ${step}/${steps}  loss ${loss.item().toFixed(3)}`);
  });
}
dist.destroyProcessGroup();

// One rank of one setting (argv[2], JSON): four steps of training, then a model and a sharded checkpoint saved to argv[3].
// Prints a line `RESULT {…}`: the bits of losses and norms, digests of parameters and, from rank 0, of the saved files. It uses what
// the package exports, and RANKZERO_PACKAGE says which build, so that one program can be run against two commits.
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { openedFiles } from './files.mjs';

const {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  applyActivationCheckpointing,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel: FSDP,
  init,
  initEmptyWeights,
  loadSafetensors,
  manualSeed,
  saveShardedCheckpoint,
  selectDevice,
  transform,
} = await import(pathToFileURL(join(process.env.RANKZERO_PACKAGE, 'dist/index.js')).href);

const setting = JSON.parse(process.argv[2]);
const out = process.argv[3];
const { name, flow = 'A', accumulate = 1 } = setting;
const dir = fileURLToPath(new URL(`../reference/${name}`, import.meta.url));

await dist.initProcessGroup({ quiet: true });
const rank = dist.getRank();
selectDevice(setting.device ?? 'cpu');
const fsdp = wrapped(await loaded());
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-3, betas: [0.9, 0.95], weightDecay: 0.1 });
const { losses, norms } = await train();
const parameters = await digestOfParameters();
const { inputIds } = await batch();
const generated = await fsdp.generate([...inputIds.slice(0, 5)].map(Number), { maxNewTokens: 6 });
await fsdp.savePretrained(join(out, 'model'));
await saveShardedCheckpoint(join(out, 'checkpoint'), fsdp, optimizer, { step: 4 });
const files = rank === 0 ? { model: digestsOf('model'), checkpoint: digestsOf('checkpoint') } : undefined;
console.log(`RESULT ${JSON.stringify({ losses, norms, parameters, generated, files })}`);
dist.destroyProcessGroup();

async function loaded() {
  manualSeed(7);
  const { dtype } = setting;
  const config = await AutoConfig.fromPretrained(dir);
  if (flow === 'random') {
    if (setting.tp) init({ tensorParallelDegree: setting.tp });
    const fresh = initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
    return setting.tp ? transform(fresh, {}) : fresh;
  }
  const original =
    flow === '0' || flow === 'B' || rank === 0
      ? await AutoModelForCausalLM.fromPretrained(dir, { dtype })
      : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config, { dtype }));
  if (flow !== 'B' && flow !== 'C') return original;
  const { tp = 1, degree = 0, sequenceParallel } = setting;
  init({ tensorParallelDegree: tp, hybridShardDegree: degree, randomSeed: 1234 });
  return transform(original, { loadStateDictFromRank0: true, sequenceParallel });
}

function wrapped(model) {
  if (setting.checkpoint) applyActivationCheckpointing(model);
  const fromRank0 = flow === 'A' || flow === 'B' || flow === 'C';
  const initer = (flow === 'random' || fromRank0) && new DelayedParamIniter(model);
  return new FSDP(model, {
    shardingStrategy: setting.strategy ?? 'FULL_SHARD',
    ...(setting.hybridShardDegree ? { hybridShardDegree: setting.hybridShardDegree } : {}),
    ...(setting.mixedPrecision ? { mixedPrecision: setting.mixedPrecision } : {}),
    syncModuleStates: fromRank0,
    ...(initer && (flow === 'random' || rank > 0) ? { paramInitFn: initer.getParamInitFn() } : {}),
  });
}

// The reference's batch, and for each data-parallel rank another rotation of it, so that gradients differ between ranks.
async function batch() {
  const reference = await loadSafetensors(join(dir, 'reference.safetensors'));
  const turn = Math.floor(rank / (setting.tp ?? 1));
  const rotated = (tensor) => {
    const data = tensor.dataSync();
    const at = (turn * 7) % data.length;
    return BigInt64Array.from([...data.slice(at), ...data.slice(0, at)]);
  };
  return {
    inputIds: rotated(reference.get('input_ids')),
    labels: rotated(reference.get('labels')),
    shape: reference.get('input_ids').shape,
  };
}

async function train() {
  const { inputIds, labels, shape } = await batch();
  const [rows, length] = shape;
  const packed = Int32Array.of(0, 5, 12, rows * length);
  const every = Int32Array.from({ length: rows + 1 }, (_, i) => i * length);
  const [losses, norms] = [[], []];
  const items = labels.filter((label) => label >= 0n).length * accumulate;
  for (let step = 0; step < 4; step++) {
    for (let i = 0; i < accumulate; i++) {
      const once = () => {
        const { loss } = fsdp.forward({
          inputIds,
          labels,
          cuSeqlens: setting.packed ? packed : every,
          ...(step > 1 ? { numItemsInBatch: items } : {}),
        });
        loss.backward();
        losses.push(bits(loss.item()));
      };
      if (setting.noSync && i + 1 < accumulate) fsdp.noSync(once);
      else once();
    }
    norms.push(bits(fsdp.clipGradNorm(1).item()));
    optimizer.step();
    optimizer.zeroGrad();
  }
  return { losses, norms };
}

function bits(value) {
  const view = new DataView(new ArrayBuffer(4));
  view.setFloat32(0, value);
  return view.getUint32(0).toString(16).padStart(8, '0');
}

async function digestOfParameters() {
  const digest = createHash('sha256');
  for (const [key, tensor] of [...(await fsdp.stateDict())].sort(([a], [b]) => (a < b ? -1 : 1)))
    digest.update(key).update(new Uint8Array((await tensor.data()).buffer));
  return digest.digest('hex').slice(0, 16);
}

function digestsOf(folder) {
  return Object.fromEntries(
    readdirSync(join(out, folder))
      .filter((file) => file !== 'state.json')
      .sort()
      .map((file) => [basename(file), openedFiles(readFileSync(join(out, folder, file)), file)]),
  );
}

// A model of one's own. Registered, it trains, shards, divides over ranks, saves and loads as those of the package do.
//   npx rankzero run --nproc 2 examples/custom_model.mjs [out] [tensor-parallel degree] [steps]
import { fileURLToPath } from 'node:url';
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  AutoTokenizer,
  add,
  attention,
  CausalLM,
  CausalLMHead,
  columnParallel,
  columnParallelBy,
  DataLoader,
  DelayedParamIniter,
  dist,
  Embedding,
  FullyShardedDataParallel as FSDP,
  gathersInput,
  gathersOutput,
  gelu,
  headParallel,
  init,
  initEmptyWeights,
  inverseFrequencies,
  LayerNorm,
  Linear,
  loadDataset,
  Module,
  ModuleList,
  readBaseConfig,
  readRopeParameters,
  registerConfig,
  registerModel,
  replicated,
  rope,
  ropeTable,
  rowParallel,
  scope,
  state,
  Tensor,
  transform,
  vocabParallel,
} from 'rankzero';

// The config: keys of config.json, typed, with errors that name the key. `raw`, which is saved, comes from readBaseConfig.
registerConfig('side_by_side', (reader) => ({
  ...readBaseConfig(reader, {
    vocabSize: 2048,
    hiddenSize: 128,
    numHiddenLayers: 4,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    maxPositionEmbeddings: 512,
    bosTokenId: 0,
    eosTokenId: 0,
    tieWordEmbeddings: false,
  }),
  modelType: 'side_by_side',
  intermediateSize: reader.size('intermediate_size', 512),
  ropeParameters: readRopeParameters(reader),
}));

// The modules, as for one device: rows are the tokens of the batch, property names are the names in the checkpoint.
// Attention takes its sizes from `heads` and `kvHeads`, which transform divides.
class Attention extends Module {
  constructor(config, dtype) {
    super();
    const { hiddenSize, headDim, numAttentionHeads, numKeyValueHeads, initializerRange: std } = config;
    this.heads = numAttentionHeads;
    this.kvHeads = numKeyValueHeads;
    this.headDim = headDim;
    this.query = new Linear(hiddenSize, this.heads * headDim, { dtype, std });
    this.key = new Linear(hiddenSize, this.kvHeads * headDim, { dtype, std });
    this.value = new Linear(hiddenSize, this.kvHeads * headDim, { dtype, std });
    this.out = new Linear(this.heads * headDim, hiddenSize, { dtype, std });
  }

  forward(x, { table, cuQ, cuK, caches }, layer) {
    const { heads, kvHeads, headDim } = this;
    const q = rope(this.query.forward(x), table, heads);
    let k = rope(this.key.forward(x), table, kvHeads);
    let v = this.value.forward(x);
    if (caches) [k, v] = caches[layer].append(k, v); // generation: keys and values of earlier tokens
    return this.out.forward(attention(q, k, v, cuQ, cuK, { heads, kvHeads, headDim }));
  }
}

class MLP extends Module {
  constructor({ hiddenSize, intermediateSize, initializerRange: std }, dtype) {
    super();
    this.up = new Linear(hiddenSize, intermediateSize, { dtype, std, bias: true });
    this.down = new Linear(intermediateSize, hiddenSize, { dtype, std, bias: true });
  }

  forward(x) {
    return this.down.forward(gelu(this.up.forward(x)));
  }
}

/** Attention and MLP beside each other, behind one norm. `scope` frees what the layer makes and does not return. */
class Layer extends Module {
  constructor(config, dtype) {
    super();
    this.norm = new LayerNorm(config.hiddenSize, 1e-5, { dtype });
    this.attention = new Attention(config, dtype);
    this.mlp = new MLP(config, dtype);
  }

  forward(x, context, layer) {
    return scope(() => {
      const normed = this.norm.forward(x);
      return add(x, add(this.attention.forward(normed, context, layer), this.mlp.forward(normed)));
    });
  }
}

class SideBySideForCausalLM extends CausalLM {
  decoderLayerClass = Layer; // what FSDP makes units of, and what activation checkpointing runs again

  constructor(config, dtype) {
    super(config);
    const { vocabSize, hiddenSize, numHiddenLayers, initializerRange: std } = config;
    this.embedding = new Embedding(vocabSize, hiddenSize, { dtype, std });
    this.layers = new ModuleList(Array.from({ length: numHiddenLayers }, () => new Layer(config, dtype)));
    this.norm = new LayerNorm(hiddenSize, 1e-5, { dtype });
    this.head = new CausalLMHead(hiddenSize, vocabSize, { dtype, std });
    const frequencies = inverseFrequencies(config.ropeParameters, config.headDim);
    this.registerBuffer('inv_freq', Tensor.from(frequencies), false);
  }

  get numLayers() {
    return this.layers.length;
  }

  get inputEmbedding() {
    return this.embedding;
  }

  get outputHead() {
    return this.head;
  }

  hidden(ids, positions, context) {
    const table = ropeTable(positions, this.buffer('inv_freq'));
    let x = this.embedding.forward(ids);
    for (const [i, layer] of this.layers.items.entries()) x = layer.forward(x, { ...context, table }, i);
    return this.norm.forward(x);
  }
}

registerModel('side_by_side', {
  create: (config, dtype) => new SideBySideForCausalLM(config, dtype),
  // Without a plan everything works but transform.
  parallelPlan: {
    embedding: vocabParallel,
    'layers.*.norm': replicated,
    'layers.*.attention': headParallel,
    'layers.*.attention.query': columnParallel,
    'layers.*.attention.key': columnParallelBy('numKeyValueHeads'),
    'layers.*.attention.value': columnParallelBy('numKeyValueHeads'),
    'layers.*.attention.out': rowParallel,
    'layers.*.mlp': gathersInput,
    'layers.*.mlp.up': columnParallel,
    'layers.*.mlp.down': rowParallel,
    norm: gathersOutput,
    head: vocabParallel,
  },
});

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const [out = 'out/custom_model', degree = '1', steps = '60'] = process.argv.slice(2);

await dist.initProcessGroup();
init({ tensorParallelDegree: Number(degree), randomSeed: 42 });
const say = (text) => dist.getRank() === 0 && console.log(text);

// Fresh weights: every rank starts on meta and draws its own part of them, the same bits for any number of ranks.
const config = AutoConfig.fromObject({ model_type: 'side_by_side' });
const model = transform(initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config)));
const initer = new DelayedParamIniter(model);
const fsdp = initer.validateParamsAndBuffersInited(
  () => new FSDP(model, { paramInitFn: initer.getParamInitFn(), postParamInitFn: initer.getPostParamInitFn() }),
);

const tokenizer = await AutoTokenizer.fromPretrained(path('moby-llama'));
const { dataset } = await loadDataset(path('data/devils-dictionary.train.jsonl'), tokenizer);
const loader = new DataLoader(dataset, { batchSize: 8, seed: 42, dpRank: state.dpRank, dpSize: state.dpSize });
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 2e-3 });
let step = 0;
for (const { microBatches } of loader) {
  scope(() => {
    const [{ inputIds, labels, cuSeqlens }] = microBatches;
    const { loss } = fsdp.forward({ inputIds, labels, cuSeqlens });
    loss.backward();
    fsdp.clipGradNorm(1);
    optimizer.step();
    optimizer.zeroGrad();
    if (step % 10 === 0) say(`step ${step + 1}/${steps}  loss ${loss.item().toFixed(3)}`);
  });
  if (++step === Number(steps)) break;
}

await fsdp.savePretrained(out);
if (dist.getRank() === 0) {
  const again = await AutoModelForCausalLM.fromPretrained(out);
  const ids = await again.generate(tokenizer.encode('Whale (n.)'), { maxNewTokens: 16 });
  console.log(`saved ${out}; it says: ${tokenizer.decode(ids)}`);
}
dist.destroyProcessGroup();

// Fine-tuning by LoRA: the model is frozen, small matrices beside its linear layers are trained, and they alone are saved, in PEFT's
// format. The rest is as in train.mjs.
//   npx rankzero run --nproc 2 examples/lora.mjs
import { fileURLToPath } from 'node:url';
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  AutoTokenizer,
  applyLora,
  DataLoader,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel as FSDP,
  init,
  initEmptyWeights,
  loadAdapter,
  loadDataset,
  mergeAdapter,
  saveAdapter,
  Trainer,
  transform,
} from 'rankzero';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const dir = path('moby-llama');
// Folder of the adapter, ranks that share each layer, steps.
const [out = 'out/lora', tp = '1', steps = '100'] = process.argv.slice(2);

await dist.initProcessGroup();
const rank = dist.getRank();
const say = (text) => rank === 0 && console.log(text);

// The adapter comes first: on the whole model, on meta or not, the same on every rank.
const config = await AutoConfig.fromPretrained(dir);
const base =
  rank === 0
    ? await AutoModelForCausalLM.fromPretrained(dir)
    : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
applyLora(base, { r: 16, alpha: 32, targetModules: 'all-linear' });

// Then, where asked, layers are divided, and so are their adapters; then FSDP.
if (Number(tp) > 1) init({ tensorParallelDegree: Number(tp) });
const model = Number(tp) > 1 ? transform(base, { loadStateDictFromRank0: true }) : base;
const initer = rank > 0 ? new DelayedParamIniter(model) : undefined;
const fsdp = new FSDP(model, {
  syncModuleStates: true,
  paramInitFn: initer?.getParamInitFn(),
  postParamInitFn: initer?.getPostParamInitFn(),
});
const count = (wanted) =>
  [...model.parameters()].filter(wanted).reduce((sum, { placement }) => sum + placement.realNumel, 0);
say(`${count(({ requiresGrad }) => requiresGrad)} of ${count(() => true)} parameters are trained`);

// Only the adapter has gradients and optimizer state.
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 4e-3 });
const tokenizer = await AutoTokenizer.fromPretrained(dir);
const { dataset } = await loadDataset(path('data/devils-dictionary.train.jsonl'), tokenizer);
const dpSize = dist.getWorldSize() / Number(tp);
const loader = new DataLoader(dataset, { batchSize: 8, seed: 42, dpRank: Math.floor(rank / Number(tp)), dpSize });
const trainer = new Trainer({ fsdp, optimizer, loader, totalSteps: Number(steps), lr: 4e-3, maxGradNorm: 1 });
await trainer.train({
  onStep: ({ step, totalSteps, loss }) =>
    (step % 10 === 1 || step === totalSteps) && say(`step ${step}/${totalSteps}  loss ${loss.toFixed(3)}`),
});

// adapter_config.json and adapter_model.safetensors: PEFT opens them, and so does loadAdapter.
await saveAdapter(fsdp, out);
say(`saved ${out}`);
dist.destroyProcessGroup();

if (rank === 0) {
  const tuned = await loadAdapter(await AutoModelForCausalLM.fromPretrained(dir), out);
  mergeAdapter(tuned); // into weights that nobody has read yet
  const prompt = tokenizer.applyChatTemplate([{ role: 'user', content: 'Define whale (n.)' }], {
    addGenerationPrompt: true,
  });
  const answer = await tuned.generate(prompt, { maxNewTokens: 24 });
  say(tokenizer.decode(answer.slice(prompt.length), { skipSpecialTokens: true }).trim());
}

// What must not change when the code is rebuilt: families × strategies × tensor parallelism × precision × packing ×
// accumulation × checkpointing. Each is one job; `device: 'cuda'` are jobs on the emulator.
const bf16 = { paramDtype: 'bfloat16', reduceDtype: 'float32' };

/** Options of a setting: see program.mjs. */
export const settings = [
  { name: 'llama', world: 1, flow: '0' },
  { name: 'llama', world: 2 },
  { name: 'llama3-rope-tied', world: 2, strategy: 'SHARD_GRAD_OP', accumulate: 2, noSync: true, checkpoint: true },
  { name: 'mistral-window', world: 2, strategy: 'NO_SHARD', mixedPrecision: bf16 },
  { name: 'mixtral', world: 2, accumulate: 2, checkpoint: true },
  { name: 'qwen2', world: 4, strategy: 'HYBRID_SHARD', hybridShardDegree: 2 },
  { name: 'qwen2', world: 2, packed: true, accumulate: 2, mixedPrecision: { paramDtype: 'bfloat16' } },
  { name: 'qwen3-window', world: 3 },
  { name: 'llama', world: 2, gather: 'copy', mixedPrecision: bf16 },
  { name: 'llama', world: 2, dtype: 'bfloat16' },
  { name: 'gpt-neox', world: 2, flow: 'C', tp: 2 },
  { name: 'gpt-neox-sequential', world: 4, flow: 'C', tp: 2, sequenceParallel: true, checkpoint: true },
  { name: 'llama', world: 4, flow: 'B', tp: 4 },
  { name: 'llama3-rope-tied', world: 4, flow: 'C', tp: 4, sequenceParallel: true, packed: true },
  { name: 'qwen3', world: 4, flow: 'C', tp: 2, mixedPrecision: bf16, accumulate: 2, noSync: true },
  { name: 'mixtral', world: 4, flow: 'C', tp: 2, sequenceParallel: true, degree: 1 },
  { name: 'llama-bias', world: 2, flow: 'C', tp: 2, packed: true, strategy: 'SHARD_GRAD_OP' },
  { name: 'llama', world: 4, flow: 'C', degree: 2 },
  { name: 'qwen2', world: 4, flow: 'random', tp: 2, gather: 'copy' },
  { name: 'mixtral', world: 2, flow: 'random' },
  { name: 'llama', world: 2, device: 'cuda' },
  { name: 'llama', world: 4, device: 'cuda', strategy: 'HYBRID_SHARD', hybridShardDegree: 2, mixedPrecision: bf16 },
  { name: 'qwen3', world: 4, device: 'cuda', flow: 'C', tp: 2, sequenceParallel: true, checkpoint: true },
  { name: 'mixtral', world: 2, device: 'cuda', flow: 'C', tp: 2, accumulate: 2 },
];

/** The key of a setting in a recording. */
export const keyOf = (setting) => JSON.stringify(setting);

/** What `rankzero plan` says, which runs the same program dry. */
export const planned = [
  ['llama', '--nproc', '4', '--tp', '2', '--seq-length', '64'],
  ['mixtral', '--nproc', '8', '--tp', '2', '--precision', 'bfloat16', '--rank', '3', '--sequence-parallel'],
  ['gpt-neox', '--nproc', '4', '--strategy', 'HYBRID_SHARD', '--hybrid-shard-degree', '2', '--rank', '2'],
  ['llama3-rope-tied', '--nproc', '2', '--strategy', 'NO_SHARD', '--grad-accum', '2', '--activation-checkpointing'],
].map(([name, ...flags]) => ({ plan: { name, flags } }));

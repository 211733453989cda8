// The order of the rooms of `src` and of the native core, bottom to top, and what may break it. This is the one place where it is
// written: the tests beside it hold the code and docs/architecture.md to it.

/** Each with what it holds, as docs/architecture.md has it, top first. A room imports itself and the rooms below it: those before it here. */
export const rooms: readonly (readonly [room: string, holds: string])[] = [
  ['environment.ts', 'the environment of the process, which nothing else but the commands reads'],
  ['native_ops.ts', 'the ops of the addon, as types'],
  ['native.ts', 'loads the addon, and types the rest of its surface'],
  ['core', 'JSON, formats, versions, the machine; what the process holds; the recorder that spans go to'],
  ['tensor', 'tensors, dtypes, scopes, streams, the tape (nodes and the engine), memory between files and devices'],
  ['autograd', 'recording of ops; forward and backward of each op side by side; ops of a program'],
  ['distributed', 'launcher, rendezvous, process groups, agreement between ranks, the mesh of `init`'],
  ['profile', 'what was recorded, as a trace and as a table'],
  ['nn', 'modules, parameters, recipes, placements, the vocabulary of parallel plans'],
  ['checkpoint', 'Hugging Face folders, safetensors, sharded state'],
  ['data', 'tokenizer, examples, batches'],
  ['optim', 'optimizers over slices of parameters, schedules'],
  [
    'models',
    'by `model_type` (`families.ts`) a model with its parallel plan (`llama.ts`), its config (`llama-config.ts`), and what is other in the names of its checkpoint; generation',
  ],
  [
    'parallel',
    'tensor parallelism (plans applied to models), FSDP (units, wrapping, schedule, state dicts), delayed parameters, activation checkpointing',
  ],
  [
    'adapt',
    "what changes a model before it is divided: adapters (LoRA and DoRA in PEFT's format), which are merged again; quantised weights",
  ],
  ['train', 'the trainer, its options and its observers'],
  [
    'tools',
    'what commands do beside training: plan a run dry, convert checkpoints, check and measure a GPU ([gpu.md](gpu.md)) and the links between hosts ([clusters.md](clusters.md))',
  ],
  ['index.ts', 'what a program imports; exports only'],
  ['cli', 'the commands'],
];

/** The same for the native core, bottom to top; test/unit/layers/cpp_includes.test.ts holds the includes to it. */
export const nativeRooms: readonly (readonly [room: string, holds: string])[] = [
  ['core', 'storage, allocator, streams and events, errors, Philox; what the environment says'],
  [
    'ops',
    'one header per op: its operands, its shapes, its checks; `RZ_OPERANDS` names the fields once, for whoever reads them',
  ],
  ['cpu', 'CPU kernels: oneDNN for GEMMs, SIMD for the rest, chosen at run time'],
  ['cuda', 'CUDA kernels, one op a file; streams, allocator and copies of the device; cuBLASLt'],
  ['files', 'ranged reads and writes on open descriptors'],
  ['comm', 'process groups over shared memory and NCCL, the rendezvous store, the watch over peers'],
  ['binding', 'one file per concept; arguments are checked here; no mathematics'],
];

/** Rooms of the native core that know nothing of each other though one is above: `[above, below]`. */
export const nativeRoomsApart: readonly (readonly [above: string, below: string])[] = [
  ['cuda', 'cpu'],
  ['files', 'cpu'],
  ['files', 'cuda'],
  ['comm', 'cpu'],
  ['comm', 'files'],
  ['binding', 'cuda'],
];

/** The files that may read and write `process.env`. */
export const readsEnvironment = (file: string): boolean => file === 'src/environment.ts' || file.startsWith('src/cli/');

/** The file whose state is that of all modules. */
export const holdsState = (file: string): boolean => file === 'src/core/context.ts';

/** Imports that point upward and stay, `[importing file, imported file, reason]`. At most three. */
export const exceptions: readonly (readonly [from: string, to: string, reason: string])[] = [];

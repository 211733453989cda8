// The order of the rooms of `src`, bottom to top, and what may break it. This is the one place where it is written:
// layers.test.ts holds the code and docs/architecture.md to it.

/** Each with what it holds, as docs/architecture.md has it, top first. A room imports itself and the rooms below it: those before it here. */
export const rooms: readonly (readonly [room: string, holds: string])[] = [
  ['environment.ts', 'the environment of the process, which nothing else but the commands reads'],
  ['native.ts', 'loads the addon; the only file that types its surface'],
  ['core', 'JSON, formats, versions, the machine; what the process holds; the recorder that spans go to'],
  ['tensor', 'tensors, dtypes, scopes, streams, the tape (nodes and the engine), memory between files and devices'],
  ['autograd', 'recording of ops; forward and backward of each op side by side; ops of a program'],
  ['distributed', 'launcher, rendezvous, process groups, agreement between ranks, the mesh of `init`'],
  ['profile', 'what was recorded, as a trace and as a table'],
  ['nn', 'modules, parameters, recipes, placements, the vocabulary of parallel plans'],
  ['checkpoint', 'Hugging Face folders, safetensors, sharded state'],
  ['data', 'tokenizer, examples, batches'],
  ['optim', 'AdamW over slices of parameters, schedules'],
  ['models', 'one file per `model_type`, with its parallel plan and the names of its checkpoint; generation'],
  [
    'parallel',
    'tensor parallelism (plans applied to models), FSDP (units, wrapping, schedule, state dicts), delayed parameters, activation checkpointing',
  ],
  ['train', 'the trainer, its options and its observers'],
  [
    'tools',
    'what commands do beside training: plan a run dry, convert checkpoints, check and measure a GPU ([gpu.md](gpu.md))',
  ],
  ['index.ts', 'what a program imports; exports only'],
  ['cli', 'the commands'],
];

/** The files that may read and write `process.env`. */
export const readsEnvironment = (file: string): boolean => file === 'src/environment.ts' || file.startsWith('src/cli/');

/** The file whose state is that of all modules. */
export const holdsState = (file: string): boolean => file === 'src/core/context.ts';

/** Imports that point upward and stay, `[importing file, imported file, reason]`. At most three. */
export const exceptions: readonly (readonly [from: string, to: string, reason: string])[] = [];

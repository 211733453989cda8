// `rankzero plan`: what a fine-tuning run would take on each rank, by running it dry. The flags are those of finetune.
import { Command, Option } from 'commander';
import { formatBytes, formatCount, formatWhole } from '../core/format.ts';
import { readJsonObject } from '../core/json.ts';
import { describeMachine } from '../core/machine.ts';
import { AutoConfig, type ModelConfig } from '../models/config.ts';
import type { DryWire } from '../native.ts';
import { impliedStrategy, runDry, unused } from '../tools/plan/plan.ts';
import type { PlanReport } from '../tools/plan/report.ts';
import { flagOf, parseFinetuneOptions } from '../train/options_schema.ts';
import { addFinetuneFlags } from './flags.ts';

const examples = `
--model is a folder, a config.json, or a hub id in the local cache; only the config is read. The flags are those of
finetune; --world-size, --seq-len and --checkpointing are taken for --nproc, --seq-length and --activation-checkpointing.

Examples:
  rankzero plan --model ./llama --nproc 4 --batch-size 2
  rankzero plan --model llama-405b/config.json --nproc 128 --tp 8 --precision bfloat16 --activation-checkpointing
  rankzero plan --model ./llama --nproc 16 --hybrid-shard-degree 4 --json
`;

const flags = [
  'tp',
  'sequenceParallel',
  'strategy',
  'hybridShardDegree',
  'precision',
  'activationCheckpointing',
  'batchSize',
  'gradAccum',
  'seqLength',
] as const;

/** Other names of the same flags. */
const aliases = [
  ['--world-size <n>', 'nproc'],
  ['--seq-len <n>', 'seqLength'],
  ['--checkpointing', 'activationCheckpointing'],
] as const;

/** The command with its flags; parsing it runs nothing. */
export function buildPlanCommand(): Command {
  const command = new Command('rankzero plan')
    .description('Says what a run will take on each rank, and what it sends, without a byte of the model.')
    .requiredOption('--model <path>', 'model folder, config.json, or a hub id in the local Hugging Face cache')
    .option('--rank <n>', 'rank to plan; rank 0 reads the weights for all', '0')
    .option('--json', 'print the report as JSON')
    .showSuggestionAfterError()
    .addHelpText('after', examples);
  addFinetuneFlags(command, ['nproc', ...flags]);
  for (const [flag] of aliases) command.addOption(new Option(flag).hideHelp());
  return command;
}

async function readConfig(path: string): Promise<ModelConfig> {
  return path.endsWith('.json')
    ? AutoConfig.fromObject(await readJsonObject(path), path)
    : AutoConfig.fromPretrained(path);
}

/** @internal The report that the flags ask for. */
export async function planFlags({ model, rank, json: _, ...given }: Record<string, unknown>): Promise<PlanReport> {
  for (const [flag, key] of aliases) {
    const name = new Option(flag).attributeName();
    if (given[name] !== undefined) given[key] = given[name];
    delete given[name];
  }
  const options = parseFinetuneOptions(
    { strategy: impliedStrategy(given.hybridShardDegree), ...given, ...unused },
    (key) => `--${flagOf(key)}`,
  );
  const config = await readConfig(model as string);
  return runDry({ config: config.raw, file: model as string, rank: Number(rank), options });
}

const collectives: readonly [keyof DryWire, string][] = [
  ['broadcast', 'broadcast'],
  ['scatter', 'scatter'],
  ['allGather', 'all-gather'],
  ['reduceScatter', 'reduce-scatter'],
  ['allReduce', 'all-reduce'],
  ['allToAll', 'all-to-all'],
  ['send', 'send'],
];

/** @internal The report as a person reads it. */
export function describePlan({ model, ranks, settings, memory, wire }: PlanReport, machineBytes: number): string {
  const lines: string[] = [];
  const row = (name: string, value: string, note = ''): void => {
    lines.push(`  ${name.padEnd(22)} ${value.padStart(9)}  ${note}`.trimEnd());
  };
  const { largestUnit } = model;
  const { replicas, shards, tensorParallelDegree, worldSize, rank } = ranks;
  lines.push(`${model.modelType}, ${formatCount(model.parameters)} parameters (${formatWhole(model.parameters)})`, '');
  lines.push('Run');
  row('ranks', formatWhole(worldSize), gridOf(replicas, shards, tensorParallelDegree));
  row(
    'units',
    formatWhole(model.units),
    `largest: ${largestUnit.name}, ${formatBytes(largestUnit.bytes)} when gathered`,
  );
  const perStep = settings.batchSize * settings.seqLength * settings.gradAccum * replicas * shards;
  row('tokens a step', formatWhole(perStep), batchOf(settings));
  const extras = [
    settings.activationCheckpointing && 'activation checkpointing',
    settings.sequenceParallel && 'sequence parallel',
  ].filter(Boolean);
  row('precision', settings.precision, [settings.strategy, ...extras].join(', '));

  lines.push('', `Memory of rank ${rank}, each at its highest`);
  row('parameters', formatBytes(memory.parameters), 'shards, float32');
  row('gradients', formatBytes(memory.gradients), 'shards, and units that are being reduced');
  row('optimizer', formatBytes(memory.optimizer), 'the two moments of AdamW');
  row('activations', formatBytes(memory.activations));
  row('compute copies', formatBytes(memory.unshard), 'shards in the dtype of forward and backward, if another');
  if (memory.staging > 0) row('staging', formatBytes(memory.staging));
  row('other', formatBytes(memory.other));
  row('peak while loading', formatBytes(memory.loadPeak));
  row('peak in a step', formatBytes(memory.stepPeak));

  lines.push(
    '',
    `Rank ${rank} sends ${'while loading'.padStart(17 + 8 - `${rank}`.length)} ${'in a step'.padStart(11)}`,
  );
  for (const [kind, name] of collectives) {
    const [load, step] = [wire.load[kind], wire.step[kind]];
    if (load.calls + step.calls === 0) continue;
    lines.push(`  ${name.padEnd(22)} ${formatBytes(load.bytes).padStart(9)} ${formatBytes(step.bytes).padStart(11)}`);
  }
  if (worldSize === 1) lines.push('  nothing');

  const total = Math.max(memory.loadPeak, memory.stepPeak) * worldSize;
  const who = worldSize === 1 ? 'It takes' : `All ${formatWhole(worldSize)} ranks on one host would take`;
  const verdict = total > machineBytes ? ': too little for them' : '';
  lines.push(
    '',
    `${who} ${formatBytes(total)}, and each process its code and scratch beside it. This machine has ${formatBytes(machineBytes)}${verdict}.`,
  );
  return lines.join('\n');
}

function gridOf(replicas: number, shards: number, tensorParallelDegree: number): string {
  const parts = [`${shards} shard${shards === 1 ? '' : 's'}`];
  if (replicas > 1) parts.unshift(`${replicas} replicas`);
  if (tensorParallelDegree > 1) parts.push(`${tensorParallelDegree} tensor-parallel`);
  return parts.join(' × ');
}

function batchOf({ batchSize, seqLength, gradAccum }: PlanReport['settings']): string {
  const passes = gradAccum > 1 ? `${gradAccum} passes of ` : '';
  return `${passes}${batchSize} × ${formatWhole(seqLength)} on each data-parallel rank`;
}

export async function planCommand(argv: string[]): Promise<number> {
  const given = buildPlanCommand().parse(argv, { from: 'user' }).opts();
  const report = await planFlags(given);
  const { cgroupMemoryBytes, memoryBytes } = describeMachine();
  console.log(given.json ? JSON.stringify(report, null, 2) : describePlan(report, cgroupMemoryBytes ?? memoryBytes));
  return 0;
}

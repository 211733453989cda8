// `rankzero plan`: what a fine-tuning run would take on each rank, by running it dry. The flags are those of finetune.
import { Command, Option } from 'commander';
import { formatBytes, formatParameters, formatWhole } from '../core/format.ts';
import { readJsonObject } from '../core/json.ts';
import { describeMachine } from '../core/machine.ts';
import { AutoConfig, type ModelConfig } from '../models/config.ts';
import type { DryWire } from '../native.ts';
import { impliedStrategy, runDry, unused } from '../tools/plan/plan.ts';
import type { PlanReport } from '../tools/plan/report.ts';
import type { FinetuneOptions } from '../train/options.ts';
import { flagOf, parseFinetuneOptions } from '../train/options_schema.ts';
import { addFinetuneFlags } from './flags.ts';
import { LaunchFlagError, parseLaunchFlags } from './launch_flags.ts';

const examples = `
--model is a folder, a config.json, or a hub id in the local cache; only the config is read. The flags are those of
finetune; --seq-len and --checkpointing are taken for --seq-length and --activation-checkpointing. --nproc counts the ranks of one
host, as in finetune, and --world-size those of all hosts.

Examples:
  rankzero plan --model ./llama --nproc 4 --batch-size 2
  rankzero plan --model llama-405b/config.json --nnodes 16 --nproc 8 --device cuda --tp 8 --precision bfloat16 --checkpointing
  rankzero plan --model ./llama --nnodes 2 --nproc 2
  rankzero plan --model ./llama --nproc 16 --hybrid-shard-degree 4 --json
`;

const flags = [
  'tp',
  'sequenceParallel',
  'strategy',
  'hybridShardDegree',
  'loraR',
  'loraAlpha',
  'loraTarget',
  'loraDropout',
  'loraRslora',
  'loraDora',
  'loraModulesToSave',
  'loraBias',
  'precision',
  'activationCheckpointing',
  'recompute',
  'quantize',
  'reducePrecision',
  'optimizer',
  'momentum',
  'batchSize',
  'gradAccum',
  'seqLength',
] as const;

/** Other names of the same flags. */
const aliases = [
  ['--seq-len <n>', 'seqLength'],
  ['--checkpointing', 'activationCheckpointing'],
] as const;

/** The command with its flags; parsing it runs nothing. */
export function buildPlanCommand(): Command {
  const command = new Command('rankzero plan')
    .description('Says what a run will take on each rank, and what it sends, without a byte of the model.')
    .requiredOption('--model <path>', 'model folder, config.json, or a hub id in the local Hugging Face cache')
    .option('--nnodes <n>', 'hosts, with --nproc ranks each', '1')
    .option('--world-size <n>', 'ranks of all hosts, in place of --nproc')
    .addOption(
      new Option('--device <device>', 'what the ranks compute on; no device is needed')
        .choices(['cpu', 'cuda'])
        .default('cpu'),
    )
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
export async function planFlags(flags: Record<string, unknown>): Promise<PlanReport> {
  const { model, rank, nnodes: hosts, worldSize, device, json: _, ...given } = flags;
  for (const [flag, key] of aliases) {
    const name = new Option(flag).attributeName();
    if (given[name] !== undefined) given[key] = given[name];
    delete given[name];
  }
  const { nnodes = 1 } = parseLaunchFlags({ nnodes: hosts });
  if (worldSize !== undefined && given.nproc !== undefined)
    throw new LaunchFlagError('--world-size counts the ranks of all hosts and --nproc those of each: give one of them');
  const parse = (nproc: unknown) =>
    parseFinetuneOptions(
      {
        strategy: impliedStrategy(given.hybridShardDegree),
        ...given,
        ...(nproc === undefined ? {} : { nproc }),
        ...unused,
      },
      (key) => (key === 'nproc' && worldSize !== undefined ? '--world-size' : `--${flagOf(key)}`),
    );
  const ranks = Number(given.nproc ?? 1) * nnodes;
  const options = parse(worldSize ?? (Number.isNaN(ranks) ? given.nproc : ranks));
  const config = await readConfig(model as string);
  return runDry({
    config: config.raw,
    file: model as string,
    rank: Number(rank),
    options,
    nnodes,
    device: device as 'cpu' | 'cuda',
  });
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

/** What an optimizer keeps of the shards. */
const keptBy: Record<FinetuneOptions['optimizer'], string> = {
  adamw: 'the two moments of AdamW',
  adamw8bit: 'the two moments of AdamW, of 8 bits',
  sgd: 'the momentum buffer of SGD',
  adafactor: 'means of rows and columns of Adafactor, whole on every rank',
};

/** @internal The report as a person reads it. */
export function describePlan(report: PlanReport, machineBytes: number): string {
  const { model, ranks, settings, memory } = report;
  const lines: string[] = [];
  const row = (name: string, value: string, note = ''): void => {
    lines.push(`  ${name.padEnd(22)} ${value.padStart(9)}  ${note}`.trimEnd());
  };
  const { largestUnit } = model;
  const { replicas, shards, tensorParallelDegree, worldSize, nnodes, rank } = ranks;
  const { parameters, trainableParameters } = model;
  lines.push(
    `${model.modelType}, ${formatParameters(parameters, trainableParameters)} (${formatWhole(trainableParameters)})`,
    '',
  );
  lines.push('Run');
  row('ranks', formatWhole(worldSize), gridOf(replicas, shards, tensorParallelDegree));
  if (nnodes > 1) row('hosts', formatWhole(nnodes), `of ${formatWhole(worldSize / nnodes)} ranks`);
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
    settings.quantize && `linear layers in ${settings.quantize}`,
  ].filter(Boolean);
  row('precision', settings.precision, [settings.strategy, ...extras].join(', '));

  const isOnDevice = settings.device === 'cuda';
  const isGathered = isOnDevice || nnodes > 1;
  lines.push('', `Memory of rank ${rank}${isOnDevice ? ' on its device' : ''}, each at its highest`);
  const isWhole = parameters === trainableParameters && !settings.quantize;
  const frozen = settings.quantize ? `shards; quantised ones in ${settings.quantize}` : 'shards';
  row('parameters', formatBytes(memory.parameters), isWhole ? 'shards, float32' : frozen);
  row('gradients', formatBytes(memory.gradients), 'shards, and units that are being reduced');
  row('optimizer', formatBytes(memory.optimizer), keptBy[settings.optimizer]);
  row('activations', formatBytes(memory.activations));
  row(
    isGathered ? 'gathered units' : 'compute copies',
    formatBytes(memory.unshard),
    isGathered ? 'in the dtype of forward and backward' : 'shards in the dtype of forward and backward, if another',
  );
  if (memory.staging > 0) row('staging', formatBytes(memory.staging));
  row('other', formatBytes(memory.other));
  row('peak while loading', formatBytes(memory.loadPeak));
  row('peak in a step', formatBytes(memory.stepPeak));

  lines.push(...describeTraffic(report), '', verdictOf(report, machineBytes));
  return lines.join('\n');
}

/** One pair of columns within the host, and one to other hosts where there are any. */
function describeTraffic({ ranks: { worldSize, nnodes, rank }, wire }: PlanReport): string[] {
  const columns = [
    ['while loading', (kind) => wire.load[kind].within],
    ['in a step', (kind) => wire.step[kind].within],
    ['while loading', (kind) => wire.load[kind].between],
    ['in a step', (kind) => wire.step[kind].between],
  ] satisfies [string, (kind: keyof DryWire) => number][];
  const shown = nnodes > 1 ? columns : columns.slice(0, 2);
  const line = (name: string, cells: readonly string[]): string =>
    name.padEnd(22) + cells.map((cell) => cell.padStart(15)).join('');
  const lines = [''];
  if (nnodes > 1) lines.push(`${'within its host'.padStart(52)}${'to other hosts'.padStart(30)}`);
  lines.push(
    line(
      `Rank ${rank} sends`,
      shown.map(([title]) => title),
    ),
  );
  for (const [kind, name] of collectives) {
    if (wire.load[kind].calls + wire.step[kind].calls === 0) continue;
    lines.push(
      line(
        `  ${name}`,
        shown.map(([, bytes]) => formatBytes(bytes(kind))),
      ),
    );
  }
  if (worldSize === 1) lines.push('  nothing');
  return lines;
}

/** What the processes of a host take together, beside what this machine has. */
function verdictOf({ ranks: { worldSize, nnodes }, memory, hostMemory }: PlanReport, machineBytes: number): string {
  const numRanks = worldSize / nnodes;
  const { loadPeak, stepPeak } = hostMemory ?? memory;
  const total = Math.max(loadPeak, stepPeak) * numRanks;
  const verdict = total > machineBytes ? ': too little for them' : '';
  const host = hostMemory ? ' of host memory' : '';
  const who =
    numRanks === 1
      ? `${worldSize === 1 ? 'It' : 'Each rank'} takes`
      : nnodes === 1
        ? `All ${formatWhole(numRanks)} ranks on one host would take`
        : `The ${formatWhole(numRanks)} ranks of a host would take`;
  const device = hostMemory
    ? `Each device has to hold ${formatBytes(Math.max(memory.loadPeak, memory.stepPeak))}, and what its driver, NCCL and GEMM library take.\n`
    : '';
  return `${device}${who} ${formatBytes(total)}${host}, and each process its code and scratch beside it. This machine has ${formatBytes(machineBytes)}${verdict}.`;
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

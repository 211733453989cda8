// The data of a run on this rank: tokenized files and the loaders over them.
import { type DatasetReport, loadDataset, type TokenDataset } from '../data/dataset.ts';
import { DataLoader } from '../data/loader.ts';
import { AutoTokenizer, type Tokenizer } from '../data/tokenizer.ts';
import { state } from '../distributed/state.ts';
import type { ModelConfig } from '../models/config.ts';
import type { Inputs } from './inputs.ts';
import type { FinetuneOptions, RunOptions } from './options.ts';

export interface TrainData {
  tokenizer: Tokenizer;
  train: DataLoader;
  /** Undefined without evaluation data. */
  eval: DataLoader | undefined;
  /** What a person should know about the files. */
  notes: string[];
}

/** Tokens of the longest sequence of a run. */
export function maxSeqLength({ seqLength }: Pick<FinetuneOptions, 'seqLength'>, config: ModelConfig): number {
  return seqLength ?? Math.min(config.maxPositionEmbeddings, 1024);
}

/** Reads and tokenizes the files. Every rank plans all steps, so every rank reads them. */
export async function loadTrainData(inputs: Inputs, config: ModelConfig, options: RunOptions): Promise<TrainData> {
  const tokenizer = await AutoTokenizer.fromPretrained(inputs.dir);
  const maxLength = maxSeqLength(options, config);
  const notes: string[] = [];
  if (maxLength > config.maxPositionEmbeddings) {
    notes.push(`sequences of up to ${maxLength} tokens, but the model was made for ${config.maxPositionEmbeddings}`);
  }
  const read = async (path: string): Promise<TokenDataset> => {
    const { dataset, report } = await loadDataset(path, tokenizer, { maxLength, lossOn: options.lossOn });
    notes.push(...remarks(report, maxLength));
    return dataset;
  };
  const shared = {
    batchSize: options.batchSize,
    dpRank: state.dpRank,
    dpSize: state.dpSize,
    seed: options.seed,
    packTo: options.packing ? maxLength : undefined,
  };
  const train = new DataLoader(await read(inputs.data), { ...shared, gradAccum: options.gradAccum });
  const evaluation =
    inputs.evalData === undefined
      ? undefined
      : new DataLoader(await read(inputs.evalData), { ...shared, shuffle: false });
  return { tokenizer, train, eval: evaluation, notes };
}

function remarks({ file, numTruncated, numDropped, numBoundaryMerged }: DatasetReport, maxLength: number): string[] {
  const count = (n: number): string => `${n} example${n === 1 ? '' : 's'}`;
  const out: string[] = [];
  if (numTruncated > 0) out.push(`${file}: ${count(numTruncated)} cut at ${maxLength} tokens`);
  if (numDropped > 0) out.push(`${file}: ${count(numDropped)} left out, without a token to learn`);
  if (numBoundaryMerged > 0) {
    out.push(`${file}: in ${count(numBoundaryMerged)} a token spans the end of the prompt; the loss counts it`);
  }
  return out;
}

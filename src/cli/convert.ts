// `rankzero convert`: between Hugging Face folders and sharded checkpoints of any division, in one process.
import { Command, InvalidArgumentError } from 'commander';
import type { ConvertOptions } from '../tools/convert/convert.ts';

const examples = `
Source and result are a Hugging Face folder, or a sharded checkpoint as finetune saves it (checkpoint-100).
Without --tp and --shards the result is a Hugging Face folder. A run resumes from a checkpoint of any division,
so this is for other programs, and for files of the right size on every host.

Examples:
  rankzero convert ./tuned/checkpoint-100 ./exported
  rankzero convert ./checkpoint ./exported --model ./llama      (a checkpoint that does not name its model)
  rankzero convert ./llama ./merged --merge-adapter ./adapter
  rankzero convert ./llama ./llama-tp4 --tp 4 --shards 2
`;

const count = (text: string): number => {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('Wanted a whole number of at least 1.');
  return value;
};

export function buildConvertCommand(): Command {
  return new Command('rankzero convert')
    .description('Converts between Hugging Face folders and checkpoints divided over tensor-parallel ranks and shards.')
    .argument('<source>', 'Hugging Face folder or sharded checkpoint')
    .argument('<out>', 'folder to write; appears when it is complete')
    .option('--tp <n>', 'write a sharded checkpoint, divided over n tensor-parallel ranks', count)
    .option('--shards <n>', 'shards of each tensor-parallel part', count)
    .option('--merge-adapter <dir>', "an adapter in PEFT's format to merge into the weights")
    .option('--model <dir>', 'config and tokenizer of a sharded checkpoint (default: the model its run names)')
    .showSuggestionAfterError()
    .addHelpText('after', examples);
}

const size = (bytes: number): string =>
  bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;

export async function convertCommand(argv: string[]): Promise<number> {
  const command = buildConvertCommand().parse(argv, { from: 'user' });
  const [source, out] = command.args as [string, string];
  const { tp, shards, model, mergeAdapter } = command.opts<{
    tp?: number;
    shards?: number;
    model?: string;
    mergeAdapter?: string;
  }>();
  const { convertCheckpoint } = await import('../tools/convert/convert.ts');
  const terminal = process.stderr.isTTY === true;
  const onProgress: ConvertOptions['onProgress'] = ({ bytes, totalBytes }) => {
    process.stderr.write(`\r\x1b[K${size(bytes)} of ${size(totalBytes)}`);
  };
  const started = performance.now();
  const report = await convertCheckpoint({
    source,
    out,
    model,
    tensorParallelDegree: tp,
    shards,
    mergeAdapter,
    onProgress: terminal ? onProgress : undefined,
  });
  if (terminal) process.stderr.write('\r\x1b[K');
  const seconds = (performance.now() - started) / 1000;
  const kind = report.kind === 'pretrained' ? 'Hugging Face folder' : 'sharded checkpoint';
  console.log(`${report.out}: ${kind}, ${report.tensors} parameters, ${size(report.bytes)} in ${seconds.toFixed(1)} s`);
  return 0;
}

// `rankzero generate`: one process, one prompt, text as it comes.
import { Command, InvalidArgumentError, Option } from 'commander';
import type { Tokenizer } from '../data/tokenizer.ts';
import type { DeviceChoice } from '../distributed/compute_device.ts';
import type { CausalLM } from '../models/causal_lm.ts';

const examples = `
Without --prompt the prompt is read from standard input. With a chat template the prompt is a question, and the model
answers; --no-chat continues the text as it is.

Examples:
  rankzero generate --model ./tuned --prompt "Define whale (n.)"
  rankzero generate --model ./llama --no-chat --prompt "Call me" --max-new-tokens 40 --temperature 0.8 --top-p 0.95
  rankzero generate --model ./llama --adapter ./adapter --prompt "Define whale (n.)"
  echo "Define comfort (n.)" | rankzero generate --model ./tuned
`;

interface Flags {
  model: string;
  adapter?: string;
  prompt?: string;
  system?: string;
  chat?: boolean;
  device: DeviceChoice;
  maxNewTokens: number;
  temperature: number;
  topP: number;
  seed: number;
}

/** A parser for commander that says what a number must be. */
function number(wanted: string, isRight: (value: number) => boolean): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (!isRight(value)) throw new InvalidArgumentError(`Wanted ${wanted}.`);
    return value;
  };
}

const whole = (least: number): ((text: string) => number) =>
  number(`a whole number of at least ${least}`, (v) => Number.isInteger(v) && v >= least);

export function buildGenerateCommand(): Command {
  return new Command('rankzero generate')
    .description('Continues a prompt, or answers it with the chat template of the model.')
    .requiredOption('--model <dir>', 'model folder, or a hub id in the local Hugging Face cache')
    .option('--adapter <dir>', "adapter of the model, in PEFT's format")
    .option('--prompt <text>', 'the prompt (default: standard input)')
    .option('--system <text>', 'system message before the prompt, for chat')
    .option('--chat', 'use the chat template (default: if the model has one)')
    .option('--no-chat', 'continue the text as it is')
    .option('--max-new-tokens <n>', 'stop after n tokens', whole(1), 256)
    .option(
      '--temperature <x>',
      '0 is greedy',
      number('a number of at least 0', (v) => v >= 0),
      0,
    )
    .option(
      '--top-p <x>',
      'sample from the likeliest tokens that make up this share',
      number('a number above 0, at most 1', (v) => v > 0 && v <= 1),
      1,
    )
    .option('--seed <n>', 'seed of the sampling', whole(0), 0)
    .addOption(
      new Option('--device <kind>', 'compute on a GPU, or the CPU; auto: a GPU where one can be used')
        .choices(['auto', 'cpu', 'cuda'])
        .default('auto'),
    )
    .showSuggestionAfterError()
    .addHelpText('after', examples);
}

async function readStdin(): Promise<string> {
  if (process.stdin.isTTY) throw new Error('no prompt: give --prompt, or pipe it to standard input');
  process.stdin.setEncoding('utf8');
  let text = '';
  for await (const chunk of process.stdin) text += chunk;
  return text.trimEnd();
}

function encode(tokenizer: Tokenizer, prompt: string, { chat, system }: Flags): number[] {
  if (chat === true && !tokenizer.chatTemplate) throw new Error('--chat: the model has no chat template');
  if (!(chat ?? tokenizer.chatTemplate !== undefined)) return tokenizer.encode(prompt);
  const messages = [{ role: 'user', content: prompt }];
  if (system !== undefined) messages.unshift({ role: 'system', content: system });
  return tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
}

/**
 * Text of tokens that come one at a time. A token is decoded after its predecessors, since spaces depend on them, and
 * held back while it ends within a character.
 */
export class TextStream {
  readonly #tokenizer: Pick<Tokenizer, 'decode'>;
  readonly #ids: number[] = [];
  #start = 0;
  #shown = 0;

  constructor(tokenizer: Pick<Tokenizer, 'decode'>) {
    this.#tokenizer = tokenizer;
  }

  /** The text that `id` adds. */
  push(id: number): string {
    this.#ids.push(id);
    const options = { skipSpecialTokens: true };
    const before = this.#tokenizer.decode(this.#ids.slice(this.#start, this.#shown), options);
    const text = this.#tokenizer.decode(this.#ids.slice(this.#start), options);
    if (text.endsWith('\ufffd') || text.length <= before.length) return '';
    this.#start = this.#shown;
    this.#shown = this.#ids.length;
    return text.slice(before.length);
  }
}

async function useAdapter(model: CausalLM, dir: string): Promise<void> {
  const { loadAdapter } = await import('../adapt/files.ts');
  const { mergeAdapter } = await import('../adapt/merge.ts');
  await loadAdapter(model, dir);
  // The lengths of rows (DoRA) would be taken for every token.
  if ([...model.namedParameters()].some(([name]) => name.includes('.lora_magnitude_vector.'))) mergeAdapter(model);
}

export async function generateCommand(argv: string[]): Promise<number> {
  const flags = buildGenerateCommand().parse(argv, { from: 'user' }).opts<Flags>();
  const prompt = flags.prompt ?? (await readStdin());
  const [{ AutoModelForCausalLM }, { AutoTokenizer }, { selectOwnDevice }] = await Promise.all([
    import('../models/auto.ts'),
    import('../data/tokenizer.ts'),
    import('../distributed/compute_device.ts'),
  ]);
  const { device, reason } = selectOwnDevice(flags.device);
  const tokenizer = await AutoTokenizer.fromPretrained(flags.model);
  const ids = encode(tokenizer, prompt, flags);
  const model = await AutoModelForCausalLM.fromPretrained(flags.model);
  if (flags.adapter !== undefined) await useAdapter(model, flags.adapter);
  model.to(device);
  const stream = new TextStream(tokenizer);
  const { maxNewTokens, temperature, topP, seed } = flags;
  let count = 0;
  const start = performance.now();
  const onToken = (id: number): void => {
    count++;
    process.stdout.write(stream.push(id));
  };
  await model.generate(ids, { maxNewTokens, temperature, topP, seed, onToken });
  process.stdout.write('\n');
  if (process.stderr.isTTY) {
    const seconds = (performance.now() - start) / 1000;
    process.stderr.write(
      `\x1b[2m${count} tokens in ${seconds.toFixed(1)} s, ${(count / seconds).toFixed(0)} tok/s; ${device}, ${reason}\x1b[22m\n`,
    );
  }
  return 0;
}

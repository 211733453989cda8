// Tokenizers of Hugging Face folders: tokenizer.json, tokenizer_config.json and the chat template.
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import type { Tokenizer as HfTokenizer } from '@huggingface/tokenizers';
import { type ResolveOptions, resolveModel } from '../checkpoint/hub.ts';
import { FileFormatError, isObject, type JsonObject, parseJson, readJsonObject } from '../core/json.ts';
import { type ChatMessage, ChatTemplate, type RenderOptions } from './chat-template.ts';

export interface EncodeOptions {
  /** Adds what the tokenizer's post-processor adds, such as a first `<s>`. Default: true. */
  readonly addSpecialTokens?: boolean | undefined;
}

export interface DecodeOptions {
  readonly skipSpecialTokens?: boolean | undefined;
  /** Removes spaces before punctuation. Default: the tokenizer's setting, else false. */
  readonly cleanUpTokenizationSpaces?: boolean | undefined;
}

// Loaded when the first tokenizer is made: `import 'rankzero'` does not wait for it.
const require = createRequire(import.meta.url);

const specialNames = ['bos_token', 'eos_token', 'pad_token', 'unk_token'] as const;
type SpecialName = (typeof specialNames)[number];

/** Text to token ids and back. Made by {@link AutoTokenizer}. */
export class Tokenizer {
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  readonly padTokenId: number | null;
  readonly unkTokenId: number | null;
  /** Tokens of the vocabulary, added ones included. The model's embedding may have more rows. */
  readonly vocabSize: number;
  /** Longest sequence the model was made for, if the files say. */
  readonly modelMaxLength: number | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly #inner: HfTokenizer;
  readonly #cleanUp: boolean;

  /** From the contents of tokenizer.json and tokenizer_config.json; `template` is chat_template.jinja. */
  constructor(tokenizer: JsonObject, config: JsonObject, template?: string, origin = 'tokenizer') {
    try {
      const { Tokenizer: Inner } = require('@huggingface/tokenizers') as typeof import('@huggingface/tokenizers');
      this.#inner = new Inner(tokenizer, config);
    } catch (cause) {
      throw new FileFormatError(join(origin, 'tokenizer.json'), `cannot be used: ${(cause as Error).message}`, {
        cause,
      });
    }
    const special = specialTokens(config);
    const id = (name: SpecialName): number | null => {
      const token = special[name];
      return token === undefined ? null : (this.tokenToId(token) ?? null);
    };
    this.bosTokenId = id('bos_token');
    this.eosTokenId = id('eos_token');
    this.padTokenId = id('pad_token');
    this.unkTokenId = id('unk_token');
    this.vocabSize = this.#inner.get_vocab(true).size;
    const longest = config.model_max_length;
    this.modelMaxLength = typeof longest === 'number' && longest > 0 && longest < 1e9 ? longest : undefined;
    this.#cleanUp = config.clean_up_tokenization_spaces === true;
    const source = template ?? templateOf(config, origin);
    this.chatTemplate = source === undefined ? undefined : new ChatTemplate(source, origin, special);
  }

  /** Token ids of `text`. Error: a piece of text that the tokenizer has no token for. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { ids, tokens } = this.#inner.encode(text, { add_special_tokens: options.addSpecialTokens ?? true });
    const unknown = (ids as (number | undefined)[]).indexOf(undefined);
    if (unknown >= 0) throw new Error(`the tokenizer has no token for ${JSON.stringify(tokens[unknown])}`);
    return ids;
  }

  /** Text of token ids. */
  decode(ids: Iterable<number | bigint>, options: DecodeOptions = {}): string {
    const list = Array.from(ids, Number);
    if (list.length === 0) return '';
    for (const id of list)
      if (this.idToToken(id) === undefined) throw new RangeError(`the tokenizer has no token ${id}`);
    return this.#inner.decode(list, {
      skip_special_tokens: options.skipSpecialTokens ?? false,
      clean_up_tokenization_spaces: options.cleanUpTokenizationSpaces ?? this.#cleanUp,
    });
  }

  tokenToId(token: string): number | undefined {
    return this.#inner.token_to_id(token);
  }

  idToToken(id: number): string | undefined {
    return this.#inner.id_to_token(id);
  }

  /**
   * Renders a conversation with the model's chat template and tokenizes it; with `tokenize: false` the text.
   * Mirrors `apply_chat_template`: no special tokens besides those of the template.
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: RenderOptions & { tokenize: false }): string;
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options?: RenderOptions & { tokenize?: true | undefined },
  ): number[];
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options: RenderOptions & { tokenize?: boolean | undefined } = {},
  ): string | number[] {
    if (!this.chatTemplate) {
      throw new Error(
        'this tokenizer has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)',
      );
    }
    const text = this.chatTemplate.render(messages, options);
    return options.tokenize === false ? text : this.encode(text, { addSpecialTokens: false });
  }
}

/** Loads tokenizers; mirrors `transformers.AutoTokenizer`. */
export const AutoTokenizer = {
  /** From a folder or a hub id in the local cache. Errors name the file. */
  async fromPretrained(nameOrDir: string, options?: ResolveOptions): Promise<Tokenizer> {
    const dir = await resolveModel(nameOrDir, options);
    const text = await optional(join(dir, 'tokenizer.json'));
    if (text === undefined) {
      throw new FileFormatError(
        dir,
        'no tokenizer.json in this folder. If it has a slow tokenizer only (tokenizer.model, vocab.json), convert it: ' +
          'in Python, AutoTokenizer.from_pretrained(dir).save_pretrained(dir)',
      );
    }
    const path = join(dir, 'tokenizer.json');
    const tokenizer = parseJson(text, path);
    if (!isObject(tokenizer)) throw new FileFormatError(path, 'must hold a JSON object');
    const older = await readIfThere(join(dir, 'special_tokens_map.json'));
    const config = { ...older, ...(await readIfThere(join(dir, 'tokenizer_config.json'))) };
    return new Tokenizer(tokenizer, config, await optional(join(dir, 'chat_template.jinja')), dir);
  },
};

async function optional(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

async function readIfThere(path: string): Promise<JsonObject> {
  return (await optional(path)) === undefined ? {} : readJsonObject(path);
}

/** Special tokens by name; files have them as text or as `{ content }`. */
function specialTokens(config: JsonObject): Partial<Record<SpecialName, string>> {
  const out: Partial<Record<SpecialName, string>> = {};
  for (const name of specialNames) {
    const value = config[name];
    const content = isObject(value) ? value.content : value;
    if (typeof content === 'string') out[name] = content;
  }
  return out;
}

/** `chat_template` of tokenizer_config.json: text, or a list of named ones of which `default` is taken. */
function templateOf(config: JsonObject, origin: string): string | undefined {
  const value = config.chat_template;
  if (value === undefined || value === null) return undefined;
  if (typeof value === 'string') return value;
  const named = Array.isArray(value) ? value.find((entry) => isObject(entry) && entry.name === 'default') : undefined;
  if (isObject(named) && typeof named.template === 'string') return named.template;
  throw new FileFormatError(
    join(origin, 'tokenizer_config.json'),
    'chat_template must be text or a list with a "default"',
  );
}

// From records to token ids with a loss mask. In a conversation the loss is on the assistant's turns: rendered prefixes
// of it, with and without the turn, tell where its tokens begin and end. That holds only if the template renders a
// prefix of the conversation as a prefix of the text, which is checked.
import type { ChatMessage } from './chat-template.ts';
import type { DataRecord } from './jsonl.ts';
import type { Tokenizer } from './tokenizer.ts';

export interface ExampleOptions {
  /** Longer examples are cut at their end. Default: no limit. */
  readonly maxLength?: number | undefined;
  /** `completions`: completions and assistant turns; records of plain text count whole. Default. `all`: every token. */
  readonly lossOn?: 'completions' | 'all' | undefined;
  /** Renders prompt and completion as a conversation. Default: if the tokenizer has a chat template. */
  readonly useChatTemplate?: boolean | undefined;
}

/** One tokenized example. The first token never has a loss: nothing comes before it. */
export interface Example {
  readonly inputIds: Int32Array;
  /** 1 where the token is judged. */
  readonly mask: Uint8Array;
  readonly truncated: boolean;
  /** A token spans the border of prompt and completion, and is judged. */
  readonly boundaryMerged: boolean;
}

interface Masked {
  ids: number[];
  /** Judged ranges, end exclusive. */
  spans: [number, number][];
  merged: boolean;
}

/** Tokenizes a record. Errors: what the template refuses, or one that does not keep prefixes. */
export function tokenizeRecord(record: DataRecord, tokenizer: Tokenizer, options: ExampleOptions = {}): Example {
  const { ids, spans, merged } = tokenize(record, tokenizer, options);
  const length = Math.min(ids.length, options.maxLength ?? Number.POSITIVE_INFINITY);
  const mask = new Uint8Array(length);
  for (const [begin, end] of options.lossOn === 'all' ? [[0, ids.length] as const] : spans) mask.fill(1, begin, end);
  mask[0] = 0;
  return {
    inputIds: Int32Array.from(ids.slice(0, length)),
    mask,
    truncated: length < ids.length,
    boundaryMerged: merged,
  };
}

function tokenize(record: DataRecord, tokenizer: Tokenizer, options: ExampleOptions): Masked {
  if (record.kind === 'text') {
    const ids = withEnd(tokenizer.encode(record.text), tokenizer);
    return { ids, spans: [[0, ids.length]], merged: false };
  }
  if (record.kind === 'messages') return tokenizeChat(record.messages, tokenizer, options);
  if (options.useChatTemplate ?? tokenizer.chatTemplate !== undefined) {
    const messages = [
      { role: 'user', content: record.prompt },
      { role: 'assistant', content: record.completion },
    ];
    return tokenizeChat(messages, tokenizer, options);
  }
  const ids = withEnd(tokenizer.encode(record.prompt + record.completion), tokenizer);
  const prompt = withoutEnd(tokenizer.encode(record.prompt), tokenizer);
  const begin = commonPrefix(prompt, ids);
  return { ids, spans: [[begin, ids.length]], merged: begin < prompt.length };
}

function tokenizeChat(messages: readonly ChatMessage[], tokenizer: Tokenizer, options: ExampleOptions): Masked {
  const text = tokenizer.applyChatTemplate(messages, { tokenize: false });
  const encode = (piece: string) => tokenizer.encode(piece, { addSpecialTokens: false });
  const ids = encode(text);
  const spans: [number, number][] = [];
  let merged = false;
  if (options.lossOn === 'all') return { ids, spans, merged };
  messages.forEach(({ role }, i) => {
    if (role !== 'assistant') return;
    const before = tokenizer.applyChatTemplate(messages.slice(0, i), { tokenize: false, addGenerationPrompt: true });
    const last = i === messages.length - 1;
    const after = last ? text : tokenizer.applyChatTemplate(messages.slice(0, i + 1), { tokenize: false });
    if (!after.startsWith(before)) {
      throw new Error(
        `the chat template's generation prompt is not how it begins an assistant turn (message ${i}), so training would ` +
          'teach another format than generation asks for; use the loss on all tokens (lossOn: "all") to train regardless',
      );
    }
    if (!text.startsWith(after)) {
      throw new Error(
        `the chat template renders message ${i} differently when more messages follow, so the tokens of assistant turns ` +
          'cannot be told apart; end the conversation at that turn, or use the loss on all tokens (lossOn: "all")',
      );
    }
    const beforeIds = encode(before);
    const begin = commonPrefix(beforeIds, ids);
    const end = last ? ids.length : commonPrefix(encode(after), ids);
    merged ||= begin < beforeIds.length;
    spans.push([begin, end]);
  });
  return { ids, spans, merged };
}

function withEnd(ids: number[], tokenizer: Tokenizer): number[] {
  const end = tokenizer.eosTokenId;
  return end === null || ids.at(-1) === end ? ids : [...ids, end];
}

function withoutEnd(ids: number[], tokenizer: Tokenizer): number[] {
  return ids.length > 0 && ids.at(-1) === tokenizer.eosTokenId ? ids.slice(0, -1) : ids;
}

function commonPrefix(a: readonly number[], b: readonly number[]): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return length;
}

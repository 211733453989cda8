// Data files, tokenized examples and their loss masks.
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { readJsonObject } from '../../src/core/json.ts';
import { loadDataset, TokenDataset } from '../../src/data/dataset.ts';
import { type ExampleOptions, tokenizeRecord } from '../../src/data/examples.ts';
import { type DataRecord, readJsonl } from '../../src/data/jsonl.ts';
import { AutoTokenizer, Tokenizer } from '../../src/data/tokenizer.ts';

let tokenizer: Tokenizer;
let dir: string;
beforeAll(async () => {
  tokenizer = await AutoTokenizer.fromPretrained('examples/moby-llama');
  dir = await mkdtemp(join(tmpdir(), 'rz-data-'));
});

/** The example tokenizer with another template, or none. */
async function withTemplate(template: string | undefined): Promise<Tokenizer> {
  const [json, config] = await Promise.all(
    ['tokenizer.json', 'tokenizer_config.json'].map((name) => readJsonObject(`examples/moby-llama/${name}`)),
  );
  return new Tokenizer(json!, config!, template);
}

async function collect(content: string | Uint8Array): Promise<{ line: number; record: DataRecord }[]> {
  const path = join(dir, 'x.jsonl');
  await writeFile(path, content);
  const out = [];
  for await (const record of readJsonl(path)) out.push(record);
  return out;
}

describe('JSONL', () => {
  test('three forms; blank lines, \\r\\n and U+2028 do no harm', async () => {
    const records = await collect(
      '\uFEFF{"text": "a\u2028b", "id": 1}\r\n\n  \n{"prompt": "p", "completion": "c"}\n{"messages": [{"role": "user", "content": "x", "name": "n"}]}',
    );
    expect(records).toEqual([
      { line: 1, record: { kind: 'text', text: 'a\u2028b' } },
      { line: 4, record: { kind: 'completion', prompt: 'p', completion: 'c' } },
      { line: 5, record: { kind: 'messages', messages: [{ role: 'user', content: 'x', name: 'n' }] } },
    ]);
  });

  test('lines longer than a piece, characters across pieces', async () => {
    const text = '東京'.repeat(100_000);
    expect(await collect(`{"text": "${text}"}\n{"text": "b"}\n`)).toEqual([
      { line: 1, record: { kind: 'text', text } },
      { line: 2, record: { kind: 'text', text: 'b' } },
    ]);
  });

  test.each([
    ['{"text": "a"}\n{"text": }', /x\.jsonl:2: not valid JSON at line 1, column 10/],
    ['[1]', /x\.jsonl:1: each line must hold a JSON object, got \[1\]/],
    ['{"txt": "a"}', /x\.jsonl:1: a line holds "text", or .*; this one has txt/],
    ['{"text": "a", "messages": []}', /this one has both messages and text/],
    ['{"prompt": "a"}', /this one has prompt/],
    ['{"completion": "a"}', /:1: "prompt" must be a string, got nothing/],
    ['{"prompt": "a", "completion": 3}', /:1: "completion" must be a string, got 3/],
    ['{"messages": []}', /"messages" must be an array with at least one message/],
    ['{"messages": [{"role": "user"}]}', /"messages\[0\]\.content" must be a string, got nothing/],
    ['{"messages": [{"role": "user", "content": "a"}, 3]}', /"messages\[1\]" must be an object, got 3/],
  ])('%s', async (content, message) => {
    await expect(collect(content)).rejects.toThrow(message);
  });

  test('bytes that are no UTF-8', async () => {
    await expect(collect(new Uint8Array([0x7b, 0xff]))).rejects.toThrow(/x\.jsonl: the file is not UTF-8/);
    await expect(collect(new Uint8Array([0x7b, 0xe6]))).rejects.toThrow(/not UTF-8/);
  });
});

/** The judged pieces of an example, as text. */
function judged(record: DataRecord, options?: ExampleOptions, by: Tokenizer = tokenizer): string[] {
  const { inputIds, mask } = tokenizeRecord(record, by, options);
  const pieces: number[][] = [];
  mask.forEach((on, i) => {
    if (!on) return;
    if (mask[i - 1] !== 1) pieces.push([]);
    pieces.at(-1)!.push(inputIds[i]!);
  });
  return pieces.map((ids) => by.decode(ids));
}

const pair = { kind: 'completion', prompt: 'Define folly (n.)', completion: 'A gift.' } as const;
const turns = {
  kind: 'messages',
  messages: [
    { role: 'user', content: 'one' },
    { role: 'assistant', content: 'two' },
    { role: 'user', content: 'three' },
    { role: 'assistant', content: 'four' },
  ],
} as const;

describe('loss masks', () => {
  test('with a chat template: the assistant’s turns, ends included', () => {
    expect(judged(pair)).toEqual(['A gift.<|endoftext|>']);
    expect(judged(turns)).toEqual(['two<|endoftext|>', 'four<|endoftext|>']);
    const { inputIds } = tokenizeRecord(pair, tokenizer);
    expect(tokenizer.decode(inputIds)).toBe('<|user|>Define folly (n.)<|assistant|>A gift.<|endoftext|>');
  });

  test('on all tokens: all but the first', () => {
    expect(judged(pair, { lossOn: 'all' })).toEqual(['Define folly (n.)<|assistant|>A gift.<|endoftext|>']);
  });

  test('plain text ends with eos', () => {
    const { inputIds, mask } = tokenizeRecord({ kind: 'text', text: 'Call me Ishmael.' }, tokenizer);
    expect(tokenizer.decode(inputIds)).toBe('Call me Ishmael.<|endoftext|>');
    expect([...mask]).toEqual([0, ...new Array(inputIds.length - 1).fill(1)]);
  });

  test('without a template: prompt, completion, eos', async () => {
    expect(judged({ ...pair, completion: ' A gift.' }, { useChatTemplate: false })).toEqual([' A gift.<|endoftext|>']);
    const bare = await withTemplate(undefined);
    expect(judged({ ...pair, completion: ' A gift.' }, {}, bare)).toEqual([' A gift.<|endoftext|>']);
    expect(() => tokenizeRecord(turns, bare)).toThrow(/no chat template/);
  });

  test('a token across the border is judged and counted', () => {
    const example = tokenizeRecord({ kind: 'completion', prompt: 'Call me Ish', completion: 'mael.' }, tokenizer, {
      useChatTemplate: false,
    });
    const prompt = tokenizer.encode('Call me Ish');
    const border = example.mask.indexOf(1);
    expect(example.boundaryMerged).toBe(border < prompt.length);
    expect([...example.inputIds.slice(0, border)]).toEqual(prompt.slice(0, border));
  });

  test('templates that do not keep prefixes are refused', async () => {
    const counting = await withTemplate(
      '{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}',
    );
    expect(() => tokenizeRecord(turns, counting)).toThrow(
      /generation prompt is not how|differently when more messages follow/,
    );
    const thinking = await withTemplate(
      '{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == "assistant" %}hm {% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}',
    );
    expect(() => tokenizeRecord(turns, thinking)).toThrow(/renders message 1 differently when more messages follow/);
    expect(judged(pair, {}, thinking)).toEqual(['hm A gift.']);
    expect(judged(turns, { lossOn: 'all' }, thinking).length).toBe(1);
  });
});

describe('data sets', () => {
  test('the example data with the template: 54,105 tokens', async () => {
    const { dataset, report } = await loadDataset('examples/data/devils-dictionary.train.jsonl', tokenizer);
    expect(report).toMatchObject({ numExamples: 765, numTokens: 54_105, longest: 238, numTruncated: 0, numDropped: 0 });
    expect(dataset.numTokens).toBe(54_105);
    expect(dataset.length).toBe(765);
    const last = dataset.tokens(764);
    expect(last.length).toBe(dataset.lengthOf(764));
    expect(last.at(-1)).toBe(0);
    expect(tokenizer.decode(dataset.tokens(0).slice(0, 7))).toMatch(/^<\|user\|>Define folly/);
  });

  test('cutting and dropping are counted', async () => {
    const path = join(dir, 'cut.jsonl');
    const long = JSON.stringify({ text: 'word '.repeat(50) });
    const promptOnly = JSON.stringify({ prompt: 'word '.repeat(50), completion: 'x' });
    const empty = JSON.stringify({ text: '' });
    await writeFile(path, `${long}\n${promptOnly}\n${empty}\n{"text": "ok"}\n`);
    const { report } = await loadDataset(path, tokenizer, { maxLength: 10 });
    expect(report).toMatchObject({ numExamples: 2, numTruncated: 2, numDropped: 2, longest: 10 });
    await writeFile(path, `${promptOnly}\n`);
    await expect(loadDataset(path, tokenizer, { maxLength: 10 })).rejects.toThrow(
      /none of its 1 examples has a token to learn/,
    );
    await writeFile(path, '\n');
    await expect(loadDataset(path, tokenizer)).rejects.toThrow(/cut\.jsonl: no examples/);
  });

  test('errors of examples name file and line', async () => {
    const path = join(dir, 'refused.jsonl');
    await writeFile(path, `{"text": "a"}\n${JSON.stringify({ messages: turns.messages })}\n`);
    await expect(loadDataset(path, await withTemplate('{{ raise_exception("no") }}'))).rejects.toThrow(
      /refused\.jsonl:2: the chat template refuses these messages: no/,
    );
  });

  test('flat storage grows', () => {
    const examples = Array.from({ length: 50 }, (_, i) => ({
      inputIds: Int32Array.from({ length: 997 }, (_, j) => i * 1000 + j),
      mask: new Uint8Array(997).fill(1),
    }));
    const dataset = TokenDataset.from(examples);
    expect(dataset.numTokens).toBe(50 * 997);
    expect(dataset.numLabels).toBe(50 * 996);
    expect(dataset.tokens(49)).toEqual(examples[49]!.inputIds);
  });
});

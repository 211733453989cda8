// The wrapper of Hugging Face tokenizers and chat templates.
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { ChatTemplate } from '../../src/data/chat-template.ts';
import { AutoTokenizer, type Tokenizer } from '../../src/data/tokenizer.ts';

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await AutoTokenizer.fromPretrained('examples/moby-llama');
});

const chat = [
  { role: 'user', content: 'Define folly (n.)' },
  { role: 'assistant', content: 'A gift.' },
];

test('special tokens and sizes come from the files', () => {
  expect(tokenizer).toMatchObject({
    bosTokenId: 0,
    eosTokenId: 0,
    padTokenId: 1,
    unkTokenId: null,
    vocabSize: 2048,
    modelMaxLength: 512,
  });
});

test('decode undoes encode', () => {
  for (const text of ['Call me Ishmael.', '  spaces\n\nand\tlines ', 'Zürich — 東京 🐳', 'a\u2028b', '']) {
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  }
  expect(tokenizer.decode(BigInt64Array.from([0n, 261n]), { skipSpecialTokens: true })).toBe('he');
  expect(tokenizer.decode([0, 261])).toBe('<|endoftext|>he');
  expect(() => tokenizer.decode([5000])).toThrow('the tokenizer has no token 5000');
});

test('chat template', () => {
  const text = '<|user|>Define folly (n.)<|assistant|>A gift.<|endoftext|>';
  expect(tokenizer.applyChatTemplate(chat, { tokenize: false })).toBe(text);
  expect(tokenizer.applyChatTemplate(chat)).toEqual(tokenizer.encode(text, { addSpecialTokens: false }));
  const prompt = tokenizer.applyChatTemplate(chat.slice(0, 1), { addGenerationPrompt: true });
  expect(prompt[0]).toBe(2);
  expect(prompt.at(-1)).toBe(3);
});

describe('templates render as in Transformers', () => {
  test('blocks take their line with them', () => {
    const template = new ChatTemplate(
      '{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}',
      'x',
    );
    expect(template.render(chat)).toBe('Define folly (n.)\nA gift.\n');
  });

  test('special tokens, variables and raise_exception', () => {
    const template = new ChatTemplate(
      '{{ bos_token }}{{ mode }}{% if messages|length > 1 %}{{ raise_exception("one turn only") }}{% endif %}',
      'x',
      { bos_token: '<s>' },
    );
    expect(template.render(chat.slice(0, 1), { variables: { mode: 'm' } })).toBe('<s>m');
    expect(() => template.render(chat)).toThrow(/the chat template refuses these messages: one turn only/);
  });

  test('a broken template names its file', () => {
    expect(() => new ChatTemplate('{% for %}', 'dir')).toThrow(/^dir: the chat template is not valid: /);
  });
});

describe('folders', () => {
  let dir: string;
  const config = async (change: object) => {
    const path = join(dir, 'tokenizer_config.json');
    await writeFile(path, JSON.stringify({ ...JSON.parse(await readFile(path, 'utf8')), ...change }));
  };
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'rz-tokenizer-'));
    for (const name of ['tokenizer.json', 'tokenizer_config.json'])
      await cp(`examples/moby-llama/${name}`, join(dir, name));
  });

  test('no template', async () => {
    const bare = await AutoTokenizer.fromPretrained(dir);
    expect(() => bare.applyChatTemplate(chat)).toThrow(/no chat template/);
  });

  test('templates in tokenizer_config.json, one or several; tokens as objects', async () => {
    await config({ chat_template: 'one', eos_token: { content: '<|pad|>' } });
    const one = await AutoTokenizer.fromPretrained(dir);
    expect([one.applyChatTemplate([], { tokenize: false }), one.eosTokenId]).toEqual(['one', 1]);
    await config({
      chat_template: [
        { name: 'tool_use', template: 'no' },
        { name: 'default', template: 'two' },
      ],
    });
    expect((await AutoTokenizer.fromPretrained(dir)).applyChatTemplate([], { tokenize: false })).toBe('two');
    await writeFile(join(dir, 'chat_template.jinja'), 'three');
    expect((await AutoTokenizer.fromPretrained(dir)).applyChatTemplate([], { tokenize: false })).toBe('three');
    await config({ chat_template: [{ name: 'rag', template: 'no' }] });
    await rm(join(dir, 'chat_template.jinja'));
    await expect(AutoTokenizer.fromPretrained(dir)).rejects.toThrow(/tokenizer_config\.json: chat_template must be/);
  });

  test('broken and missing files are named', async () => {
    await writeFile(join(dir, 'tokenizer.json'), '{"model": }');
    await expect(AutoTokenizer.fromPretrained(dir)).rejects.toThrow(
      /tokenizer\.json: not valid JSON at line 1, column 11/,
    );
    await writeFile(join(dir, 'tokenizer.json'), '{}');
    await expect(AutoTokenizer.fromPretrained(dir)).rejects.toThrow(/tokenizer\.json: cannot be used: /);
    await rm(join(dir, 'tokenizer.json'));
    await expect(AutoTokenizer.fromPretrained(dir)).rejects.toThrow(/no tokenizer\.json in this folder/);
  });
});

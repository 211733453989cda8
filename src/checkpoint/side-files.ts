// The files of a model folder besides config and weights: a saved model keeps its tokenizer, template and defaults.
import { copyFile, readdir, rename } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { temporaryName } from './safetensors.ts';

/** Tokenizer, chat template and generation files, as Transformers names them. */
export const sideFiles: readonly string[] = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'tokenizer.model',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
];

/** Copies those of `from` that exist to `to`; returns their names. Nothing to do if both are the same folder. */
export async function copySideFiles(from: string, to: string): Promise<string[]> {
  if (resolve(from) === resolve(to)) return [];
  const present = new Set(await readdir(from));
  const copied = sideFiles.filter((name) => present.has(name));
  for (const name of copied) {
    const temporary = temporaryName(join(to, name));
    await copyFile(join(from, name), temporary);
    await rename(temporary, join(to, name));
  }
  return copied;
}

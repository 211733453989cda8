// The folder a model was loaded from: its name, and the files that travel with the weights.
import { copyFile, mkdir, readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';

export interface CheckpointSource {
  /** Absolute path of the folder. */
  dir: string;
}

// Tokenizer, chat template and generation settings, whatever the tokenizer's kind.
const companions =
  /^(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.jinja|generation_config\.json|preprocessor_config\.json|spiece\.model)$/;

/** Copies what stands beside the weights of `source` into `dir`. Nothing when they are the same folder. */
export async function copyCompanions(source: CheckpointSource, dir: string): Promise<void> {
  if (resolve(dir) === source.dir) return;
  await mkdir(dir, { recursive: true });
  for (const name of await readdir(source.dir)) {
    if (companions.test(name)) await copyFile(join(source.dir, name), join(dir, name));
  }
}

// A model that an emulated device can train.
import { copyFile, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { AutoConfig, AutoModelForCausalLM, manualSeed } from '../../src/index.ts';

const example = join(import.meta.dirname, '../../examples/moby-llama');

/** A smaller model with the tokenizer of the example. */
export async function tinyModel(dir: string): Promise<string> {
  await mkdir(dir);
  for (const name of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'])
    await copyFile(join(example, name), join(dir, name));
  const config = JSON.parse(await readFile(join(example, 'config.json'), 'utf8'));
  const sizes = { hidden_size: 64, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 96 };
  manualSeed(7);
  const tiny = AutoConfig.fromObject({ ...config, ...sizes, num_hidden_layers: 2, dtype: 'float32' });
  await AutoModelForCausalLM.fromConfig(tiny).savePretrained(dir);
  return dir;
}

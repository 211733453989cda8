// The models of the benches, made on demand and kept in a folder under the system's temporary directory.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const maker = join(import.meta.dirname, '../../test/multi/fixtures/make_model.mjs');
const gpuMaker = join(import.meta.dirname, '../programs/make_gpu_model.mjs');

/** The folder of the `small` (32M parameters) or `medium` (254M) random Llama. */
export function modelFolder(name) {
  return folderOf(name, maker, [name]);
}

/** The folder of the random Llama that doctor --gpu measures with: `full` (1B-class, bfloat16) or `small`. */
export function gpuModelFolder(size) {
  return folderOf(`gpu-${size}`, gpuMaker, [size]);
}

function folderOf(name, program, args) {
  const version = createHash('sha256').update(readFileSync(program)).digest('hex').slice(0, 8);
  const folder = join(tmpdir(), 'rankzero-bench', `${name}-${version}`);
  if (existsSync(folder)) return folder;
  mkdirSync(join(folder, '..'), { recursive: true });
  const made = mkdtempSync(`${folder}-`);
  try {
    execFileSync(process.execPath, [program, ...args, made]);
    renameSync(made, folder);
  } catch (error) {
    rmSync(made, { recursive: true, force: true });
    if (!existsSync(folder)) throw error; // another process made it meanwhile
  }
  return folder;
}

/** A config.json of the small model, changed. */
export function smallConfig(changes) {
  return JSON.stringify({
    model_type: 'llama',
    architectures: ['LlamaForCausalLM'],
    hidden_size: 512,
    num_hidden_layers: 8,
    vocab_size: 8192,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    intermediate_size: 1408,
    max_position_embeddings: 4096,
    dtype: 'float32',
    ...changes,
  });
}

// The reference cases written by Transformers: where they are, how they are read, and how results are compared.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openSafetensors, readTensor } from '../../src/checkpoint/safetensors.ts';
import { usableDType } from '../../src/checkpoint/safetensors-header.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

export const llamaCases = ['llama', 'llama3-rope-tied', 'llama-bias'] as const;

export interface TrainingRun {
  lr: number;
  betas: [number, number];
  eps: number;
  weight_decay: number;
  max_grad_norm: number;
  steps: number;
  losses: number[];
  grad_norms: number[];
}

export const caseDir = (name: string): string => fileURLToPath(new URL(`./${name}`, import.meta.url));

export function trainingRun(name: string): TrainingRun {
  return JSON.parse(readFileSync(`${caseDir(name)}/losses.json`, 'utf8')) as TrainingRun;
}

/** input_ids, labels, logits, loss and grad.<name> by name. */
export async function referenceTensors(name: string): Promise<Map<string, Tensor>> {
  const file = await openSafetensors(`${caseDir(name)}/reference.safetensors`);
  const out = new Map<string, Tensor>();
  for (const [key, entry] of file.tensors) {
    const tensor = Tensor.empty(entry.shape, usableDType(entry, key, file.path));
    readTensor(file, key, tensor.handle);
    out.set(key, tensor);
  }
  file.close();
  return out;
}

/** Norm of the difference over the norm of what is wanted. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < want.length; i++) {
    difference += (got[i]! - want[i]!) ** 2;
    norm += want[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** Largest difference over the largest magnitude of what is wanted. */
export function maxError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < want.length; i++) {
    difference = Math.max(difference, Math.abs(got[i]! - want[i]!));
    largest = Math.max(largest, Math.abs(want[i]!));
  }
  return difference / largest;
}

export const values = async (tensor: Tensor): Promise<Float32Array> => (await tensor.data()) as Float32Array;

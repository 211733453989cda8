// Plain safetensors files as maps of tensors.

import { HostParts } from '../tensor/host_parts.ts';
import { Tensor } from '../tensor/tensor.ts';
import { openSafetensors, readTensor, SafetensorsWriter } from './safetensors.ts';
import { usableDType } from './safetensors-header.ts';

/** Every tensor of a file, in its own dtype. Errors name the file and the problem. */
export async function loadSafetensors(path: string): Promise<Map<string, Tensor>> {
  const file = await openSafetensors(path);
  const out = new Map<string, Tensor>();
  try {
    for (const [name, entry] of file.tensors) {
      const tensor = Tensor.empty(entry.shape, usableDType(entry, name, file.path));
      readTensor(file, name, tensor.handle);
      out.set(name, tensor);
    }
  } finally {
    file.close();
  }
  return out;
}

/** Writes tensors, in the order of the map; complete or not at all. */
export async function saveSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  const entries = [...tensors].map(([name, { shape, dtype }]) => ({ name, shape, dtype }));
  const writer = SafetensorsWriter.create(path, entries, metadata);
  using parts = new HostParts();
  try {
    for (const [name, tensor] of tensors) await parts.write(tensor, (part, at) => writer.write(name, part.handle, at));
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

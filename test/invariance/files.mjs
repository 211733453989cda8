// The digest of a saved file, without what differs from save to save: the id of a sharded checkpoint.
import { createHash } from 'node:crypto';

export function openedFiles(bytes, name) {
  const digest = createHash('sha256');
  if (!name.endsWith('.safetensors')) return digest.update(bytes).digest('hex').slice(0, 16);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  if (header.__metadata__?.id) header.__metadata__.id = '';
  return digest
    .update(JSON.stringify(header))
    .update(bytes.subarray(8 + length))
    .digest('hex')
    .slice(0, 16);
}

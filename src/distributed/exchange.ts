// Small values between the ranks of a group, as JSON: for agreements and manifests, not for data.
import type { ProcessGroup } from './process_group.ts';

const encode = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value ?? null));
const decode = <T>(bytes: Uint8Array): T => JSON.parse(new TextDecoder().decode(bytes)) as T;

/** Every rank's value, in rank order; undefined arrives as null. Collective; blocks. */
export function allGatherJson<T>(group: ProcessGroup, value: T): T[] {
  return group.allGatherBytes(encode(value)).map((bytes) => decode<T>(bytes));
}

/** The value of rank `root`, on every rank (of a dry run: its own). Undefined arrives as null. Collective; blocks. */
export function broadcastJson<T>(group: ProcessGroup, value: T | undefined, root = 0): T {
  return decode<T>(group.broadcastBytes(encode(value), root));
}

// Memory of the device under stress: tensors of random sizes made, filled, copied between streams and freed in random order. Each
// holds one number everywhere; memory that is given out while it is in use, or used before its event, shows as another one.
import { type Handle, native } from '../../native.ts';
import { dtypeNumber } from '../../tensor/dtype.ts';
import { onStream, order } from '../../tensor/streams.ts';
import { Draw } from './draw.ts';
import type { PartOptions, Unit, UnitResult } from './part.ts';

const cuda = 1;
const float32 = dtypeNumber('float32');

interface Live {
  handle: Handle;
  numel: number;
  value: number;
  /** The stream that wrote it. */
  stream: number;
}

export async function allocatorUnits(options: PartOptions): Promise<Unit[]> {
  const stress = options.size === 'small' ? { rounds: 150, most: 20_000 } : { rounds: 4000, most: 8_000_000 };
  return [
    { name: 'random sizes on three streams', run: () => stressStreams(options, stress) },
    { name: 'everything is given back', run: () => givenBack(options) },
  ];
}

/** Undefined when all elements have the value. */
function wrongElement({ handle, numel, value }: Live): string | undefined {
  const values = new Float32Array(numel);
  native.tensorRead(handle, values);
  const at = values.findIndex((got) => got !== value);
  return at < 0 ? undefined : `element ${at} of ${numel} is ${values[at]} and should be ${value}`;
}

function stressStreams({ seed, size }: PartOptions, { rounds, most }: { rounds: number; most: number }): UnitResult {
  const draw = new Draw(seed, 'allocator', size);
  const streams = [native.computeStream(cuda), native.streamCreate('a', cuda), native.streamCreate('b', cuda)];
  const choices = draw.uniform(5 * rounds);
  const failures: string[] = [];
  const live: Live[] = [];
  let checked = 0;
  const check = (tensor: Live): void => {
    onStream(tensor.stream, () => {
      checked++;
      const wrong = wrongElement(tensor);
      if (wrong !== undefined) failures.push(wrong);
    });
    native.tensorRelease(tensor.handle);
  };
  for (let round = 0; round < rounds && failures.length === 0; round++) {
    const [size, where, what, which, extra] = choices.subarray(5 * round) as unknown as number[];
    const stream = streams[Math.floor(where! * streams.length)]!;
    // Sizes spread over the powers of two, as those of programs do.
    const numel = Math.max(1, Math.floor(most ** size!));
    const value = round + 1;
    const source = live[Math.floor(which! * live.length)];
    if (what! < 0.3 && source) {
      // A copy on another stream, and the source is freed at once.
      order(source.stream, stream);
      const handle = onStream(stream, () => {
        const copy = native.tensorEmpty(source.numel, float32, 0, cuda);
        native.copy(copy, source.handle);
        return copy;
      });
      live[live.indexOf(source)] = { ...source, handle, stream };
      native.tensorRelease(source.handle);
    } else {
      // Memory belongs to the stream on which it was made: others are ordered behind that, by who uses them.
      const handle = onStream(stream, () => {
        const made = native.tensorEmpty(numel, float32, 0, cuda);
        native.fill(made, value);
        return made;
      });
      live.push({ handle, numel, value, stream });
    }
    if (live.length > 24 || extra! < 0.15) check(live.splice(Math.floor(which! * live.length), 1)[0]!);
  }
  for (const tensor of live) check(tensor);
  return { unit: 'random sizes on three streams', cases: checked, failures };
}

function givenBack({ size }: PartOptions): UnitResult {
  const before = native.memoryStats(cuda);
  const numel = size === 'small' ? 1000 : 50_000_000;
  const handles = Array.from({ length: 4 }, () => native.tensorEmpty(numel, float32, 0, cuda));
  for (const handle of handles) native.fill(handle, 1);
  for (const handle of handles) native.tensorRelease(handle);
  native.memoryTrim();
  const after = native.memoryStats(cuda);
  const failures = [];
  if (after.total !== before.total) failures.push(`${after.total - before.total} bytes more are in use than before`);
  if (after.reserved > before.reserved)
    failures.push(`${after.reserved - before.reserved} bytes are still taken from the device after all was freed`);
  return { unit: 'everything is given back', cases: handles.length, failures };
}

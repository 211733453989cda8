// What the compiler made of each kernel: its resources and its instructions, read from the device code inside an object file.
// Instructions are 16 bytes since sm_70, with the operation in the low 12 bits, so nothing of the toolkit is needed to tell loads
// from arithmetic; device_code.test.ts holds this against kernels whose instructions are known.

/** What is counted. Of loads and stores, those of 128 bits apart: `ldg` has all, `ldg128` the widest. */
export type Operation =
  | 'ldg'
  | 'ldg128'
  | 'stg'
  | 'stg128'
  | 'ldl'
  | 'stl'
  | 'lds'
  | 'sts'
  | 'ldsm'
  | 'ldgsts'
  | 'hmma'
  | 'hgmma'
  | 'warpgroup'
  | 'utmaldg'
  | 'setmaxnreg'
  | 'trap';

export interface Kernel {
  name: string;
  registers: number;
  /** Bytes a thread has on its stack: arrays that are indexed, calls, spilled registers. */
  stack: number;
  /** Bytes of shared memory beside what a launch asks for. */
  shared: number;
  /** The most threads of a block that __launch_bounds__ allows. */
  bound: number | undefined;
  count: Record<Operation, number>;
}

const operations: ReadonlyMap<number, Exclude<Operation, 'ldg128' | 'stg128'>> = new Map([
  [0x981, 'ldg'],
  [0x986, 'stg'],
  [0x983, 'ldl'],
  [0x387, 'stl'],
  [0x987, 'stl'],
  [0x984, 'lds'],
  [0x388, 'sts'],
  [0x988, 'sts'],
  [0x83b, 'ldsm'],
  [0xfae, 'ldgsts'],
  [0x23c, 'hmma'],
  [0x9f0, 'hgmma'], // both operands in shared memory
  [0xdf0, 'hgmma'],
  [0x9c5, 'warpgroup'], // fences of products, and waits for them
  [0x5b4, 'utmaldg'],
  [0x9c8, 'setmaxnreg'],
  [0x95c, 'trap'],
]);
const wide = 6; // of the three bits of a load or store that say how much it moves

function countOperations(code: Buffer): Record<Operation, number> {
  const names: Operation[] = ['ldg128', 'stg128', ...operations.values()];
  const count = Object.fromEntries(names.map((name) => [name, 0])) as Record<Operation, number>;
  for (let at = 0; at + 16 <= code.length; at += 16) {
    const operation = operations.get(code.readUInt32LE(at) & 0xfff);
    if (!operation) continue;
    count[operation]++;
    const size = (code.readUInt32LE(at + 8) >>> 9) & 7;
    if (operation === 'ldg' && size === wide) count.ldg128++;
    if (operation === 'stg' && size === wide) count.stg128++;
  }
  return count;
}

interface Section {
  name: string;
  type: number;
  data: Buffer;
  size: number;
}

function sectionsOf(elf: Buffer): Section[] {
  const table = Number(elf.readBigUInt64LE(0x28));
  const count = elf.readUInt16LE(0x3c);
  const header = (i: number) => {
    const at = table + 64 * i;
    const [offset, size] = [Number(elf.readBigUInt64LE(at + 24)), Number(elf.readBigUInt64LE(at + 32))];
    return {
      name: elf.readUInt32LE(at),
      type: elf.readUInt32LE(at + 4),
      size,
      data: elf.subarray(offset, offset + size),
    };
  };
  const names = header(elf.readUInt16LE(0x3e)).data;
  return Array.from({ length: count }, (_, i) => {
    const section = header(i);
    return { ...section, name: names.toString('latin1', section.name, names.indexOf(0, section.name)) };
  });
}

/** Attributes of a `.nv.info` section: [attribute, payload]. */
function* attributesOf(data: Buffer): Generator<[number, Buffer]> {
  const sized = 4;
  for (let at = 0; at + 4 <= data.length; ) {
    const length = data[at] === sized ? data.readUInt16LE(at + 2) : 0;
    yield [data[at + 1]!, data.subarray(at + 4, at + 4 + length)];
    at += 4 + length;
  }
}

function kernelsOf(elf: Buffer): Kernel[] {
  const sections = sectionsOf(elf);
  const named = new Map(sections.map((section) => [section.name, section]));
  const symbols = named.get('.symtab')!.data;
  const strings = named.get('.strtab')!.data;
  const symbolName = (index: number): string => {
    const name = symbols.readUInt32LE(24 * index);
    return strings.toString('latin1', name, strings.indexOf(0, name));
  };
  const [frameSize, registerCount, mostThreads] = [0x11, 0x2f, 0x05];
  const registers = new Map<string, number>();
  const stack = new Map<string, number>();
  const info = named.get('.nv.info')?.data ?? Buffer.alloc(0); // nvcc 12 leaves it out where there is no kernel
  for (const [attribute, payload] of attributesOf(info)) {
    const into = attribute === registerCount ? registers : attribute === frameSize ? stack : undefined;
    into?.set(symbolName(payload.readUInt32LE(0)), payload.readUInt32LE(4));
  }
  return sections
    .filter(({ name }) => name.startsWith('.text.'))
    .map(({ name: section, data }) => {
      const name = section.slice('.text.'.length);
      const bounds = [...attributesOf(named.get(`.nv.info.${name}`)!.data)].find(([a]) => a === mostThreads)?.[1];
      return {
        name,
        registers: registers.get(name)!,
        stack: stack.get(name) ?? 0,
        shared: named.get(`.nv.shared.${name}`)?.size ?? 0,
        bound: bounds && bounds.readUInt32LE(0) * bounds.readUInt32LE(4) * bounds.readUInt32LE(8),
        count: countOperations(data),
      };
    });
}

/** Kernels of every uncompressed device image in an object file, by their mangled names. */
export function deviceCode(object: Buffer): Kernel[] {
  const machine = 190; // EM_CUDA
  const kernels: Kernel[] = [];
  const next = (from: number): number => object.indexOf('\x7fELF', from, 'latin1');
  for (let at = next(0); at >= 0; at = next(at + 1))
    if (object.readUInt16LE(at + 18) === machine) kernels.push(...kernelsOf(object.subarray(at)));
  return kernels;
}

// The inline assembly of PTX as opcodes with the kinds of their operands: `mma.sync.… {4 f32}, {4 b32}, {2 b32}, {4 f32}`. Of a
// vector it is said where it is not of so many registers in ascending order, as the compiler numbers those of an array.

/** Registers of a kernel by prefix: `%rd` → `b64`. */
function registersOf(body: string): Map<string, string> {
  const declared = [...body.matchAll(/\.reg \.(\w+)\s+(%\w+)<\d+>;/g)];
  return new Map(declared.map(([, type, prefix]) => [prefix!, type!]));
}

/** Splits at commas that are in no braces and no brackets. */
function split(operands: string): string[] {
  const parts: string[] = [];
  let depth = 0;
  let part = '';
  for (const character of operands) {
    if ('{['.includes(character)) depth++;
    if ('}]'.includes(character)) depth--;
    if (character === ',' && depth === 0) {
      parts.push(part.trim());
      part = '';
    } else part += character;
  }
  return [...parts, part.trim()].filter((text) => text !== '');
}

function kindOf(operand: string, types: ReadonlyMap<string, string>): string {
  if (operand.startsWith('['))
    return `[${split(operand.slice(1, -1))
      .map((each) => kindOf(each, types))
      .join(', ')}]`;
  if (operand.startsWith('{')) {
    const names = split(operand.slice(1, -1));
    const kinds = names.map((each) => kindOf(each, types));
    if (kinds.some((kind) => kind !== kinds[0])) return `{${kinds.join(', ')}}`;
    const numbers = names.map((name) => Number(name.replace(/^%[a-z]+/, '')));
    const order =
      new Set(names).size === 1
        ? ' alike'
        : numbers.every((n, i) => i === 0 || n > numbers[i - 1]!)
          ? ''
          : ' in disorder';
    return `{${kinds.length} ${kinds[0]}${order}}`;
  }
  return types.get(operand) ?? types.get(operand.replace(/\d+$/, '')) ?? operand;
}

/** The instructions of inline assembly of each kernel, by its mangled name, in order. */
export function inlineInstructions(ptx: string): Map<string, string[]> {
  const all = new Map<string, string[]>();
  for (const body of ptx.split('.visible .entry ').slice(1)) {
    const found: string[] = [];
    const registers = registersOf(body);
    for (const [, text] of body.matchAll(/\/\/ begin inline asm\n([\s\S]*?)\/\/ end inline asm/g)) {
      const types = new Map(registers);
      // Braces of a block stand alone on a line; those of operands do not.
      for (const statement of text!.replace(/^\s*[{}]\s*$/gm, '').split(';')) {
        const instruction = statement.trim().replace(/\s+/g, ' ');
        const own = /^\.reg \.(\w+) (\w+)$/.exec(instruction);
        if (own) types.set(own[2]!, own[1]!);
        if (own || instruction === '') continue;
        const [, opcode, operands] = /^(\S+) ?(.*)$/.exec(instruction)!;
        const kinds = split(operands!).map((operand) => kindOf(operand, types));
        found.push([opcode, kinds.join(', ')].join(' ').trim());
      }
    }
    all.set(/^\w+/.exec(body)![0], found);
  }
  return all;
}

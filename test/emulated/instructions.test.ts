// The inline assembly of the kernels, as the compiler hands it on, against the forms of the manual. No emulator reads it, and the
// assembler takes many a wrong one.
import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { available } from './compiled.ts';
import { inlineInstructions } from './ptx.ts';
import { sections } from './ptx_manual.ts';

const root = join(import.meta.dirname, '../..');
const cuda = join(root, 'cpp/cuda');
const forms = sections.flatMap((section) => section.forms);
const run = promisify(execFile);
if (!available) console.log('instructions.test.ts: there is no nvcc here, so no PTX is compared with the manual');

/** The instructions of fixtures/instructions.cu, with headers of `changed` before those of cpp. */
async function instructions(changed?: string): Promise<Map<string, string[]>> {
  const includes = [...(changed ? [`-I${changed}`] : []), `-I${join(root, 'cpp')}`];
  const defined = ['-std=c++20', '--expt-relaxed-constexpr', '-DRANKZERO_CUDA_ARCHITECTURES="90a"'];
  const source = join(import.meta.dirname, 'fixtures/instructions.cu');
  const args = [...defined, ...includes, '-arch=compute_90a', '-ptx', source, '-o', '-'];
  const { stdout } = await run('nvcc', args, { maxBuffer: 64 << 20 });
  return inlineInstructions(stdout);
}

/** What is not of the manual, what of it is missing, and kernels whose products are not those of their type and size. */
function differences(kernels: Map<string, string[]>): { others: string[]; missing: string[]; confused: string[] } {
  const found = [...kernels.values()].flat();
  const confused = [...kernels].filter(([name, all]) => {
    const type = name.includes('4bf16E') ? 'bf16' : 'f16';
    const size = /Lb([01])ELi(\d+)E/.exec(name);
    if (size) {
      const products = all.filter((text) => text.startsWith('wgmma'));
      const shape = `m64n${Number(size[2]) * 8}k16.f32.${type}.${type} `;
      return products.length !== 2 || products.some((text) => !text.includes(shape) || !text.endsWith(`, ${size[1]}`));
    }
    return name.includes('warp_product') && all.some((text) => /\.b?f16x?/.test(text) && !text.includes(`.${type}`));
  });
  return {
    others: found.filter((text) => !forms.includes(text)),
    missing: forms.filter((text) => !found.includes(text)),
    confused: confused.map(([name]) => name),
  };
}

describe('the sources', () => {
  it('have inline assembly in mma.h and hopper.h alone', () => {
    const others = readdirSync(cuda).filter((name) => name !== 'mma.h' && name !== 'hopper.h');
    const assembly = others.filter((name) => /\basm\b|RZ_HOPPER/.test(readFileSync(join(cuda, name), 'utf8')));
    expect(assembly).toEqual([]);
  });

  it('have no instruction that the manual is not compared with', () => {
    const text = ['mma.h', 'hopper.h'].map((name) => readFileSync(join(cuda, name), 'utf8')).join('\n');
    const named = [...text.matchAll(/"(?:@\w+ )?([a-z]\w*(?:\.[\w:]+)+|trap)/g)].map(([, opcode]) => opcode!);
    expect(named.length).toBeGreaterThan(30);
    const unknown = named.filter((opcode) => !forms.some((form) => form.includes(opcode)));
    expect(unknown).toEqual([]);
  });
});

describe.skipIf(!available)('what the compiler makes of them', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'rankzero-ptx-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('has the operands of the manual', async () => {
    expect(forms.length).toBeGreaterThan(50);
    const kernels = await instructions();
    expect([...kernels.keys()].filter((name) => /Lb[01]ELi/.test(name)).length).toBe(12);
    expect(differences(kernels)).toEqual({ others: [], missing: [], confused: [] });
  }, 60_000);

  const mutations: [what: string, header: string, from: string, to: string][] = [
    ['a result of a product of warpgroups is left out', 'hopper.h', '%44, %45, %46, %47"', '%44, %45, %46"'],
    ['two of them are exchanged', 'hopper.h', '%40, %41, %42', '%41, %40, %42'],
    ['one of them is there twice', 'hopper.h', '%62, %63"', '%62, %62"'],
    ['its shape is another', 'hopper.h', 'RZ_WGMMA_REGISTERS("bf16", "96"', 'RZ_WGMMA_REGISTERS("bf16", "64"'],
    ['its type is another', 'hopper.h', 'RZ_WGMMA_SHARED("f16", "128"', 'RZ_WGMMA_SHARED("bf16", "128"'],
    ['its scales are not there', 'hopper.h', 'right ", p, 1, 1, "', 'right ", p, 1, "'],
    ['a descriptor has 32 bits', 'hopper.h', '"l"(a), "l"(b), "r"', '"l"(a), "r"(static_cast<int>(b)), "r"'],
    ['a box has two coordinates', 'hopper.h', '{%3, %4, %5}', '{%3, %4}'],
    ['a box is of another rank', 'hopper.h', 'bulk.tensor.3d', 'bulk.tensor.2d'],
    ['bytes are expected without a number', 'hopper.h', '_, [%0], %1;', '_, [%0];'],
    ['a wait for a barrier is for its state', 'hopper.h', 'try_wait.parity.shared', 'try_wait.shared'],
    ['registers are given back that are asked for', 'hopper.h', 'setmaxnreg.inc', 'setmaxnreg.dec'],
    ['a product of a warp has the other type', 'mma.h', 'f32.f16.f16.f32', 'f32.bf16.bf16.f32'],
    ['two matrices are loaded as one', 'mma.h', 'm8n8.x2.trans', 'm8n8.x1.trans'],
    ['an asynchronous copy is never cut short', 'mma.h', '[%1], 16, %2;', '[%1], 16;'],
  ];

  it('and other operands where the sources are wrong', async () => {
    const unnoticed: string[] = [];
    const one = async ([what, header, from, to]: (typeof mutations)[number], i: number) => {
      const text = readFileSync(join(cuda, header), 'utf8');
      expect(text.split(from).length, `${header} has once: ${from}`).toBe(2);
      const file = join(folder, String(i), 'cuda', header);
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(
        file,
        text.replace(from, () => to),
      );
      const found = differences(await instructions(join(folder, String(i))));
      if (Object.values(found).flat().length === 0) unnoticed.push(what);
    };
    for (let i = 0; i < mutations.length; i += 2)
      await Promise.all(mutations.slice(i, i + 2).map((mutation, j) => one(mutation, i + j)));
    expect(unnoticed).toEqual([]);
  }, 300_000);
});

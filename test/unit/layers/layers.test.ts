// Dependencies point downward only: types too, and files that are started by their name. Settings travel as arguments,
// and modules hold nothing that changes.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { processState, processStates } from '../../../src/core/context.ts';
import { exceptions, holdsState, readsEnvironment, rooms } from './rooms.ts';
import {
  environmentsOf,
  type Found,
  type Import,
  importsOf,
  parse,
  readSources,
  roomOf,
  type Sources,
  stateOf,
} from './source.ts';

const order = rooms.map(([room]) => room);
const isUpward = ({ file, to }: Import): boolean => order.indexOf(roomOf(to)) > order.indexOf(roomOf(file));
const isExcepted = ({ file, to }: Import): boolean => exceptions.some((e) => e[0] === file && e[1] === to);
const show = ({ file, line, to }: Import): string => `${file}:${line} imports ${to}`;

/** With a total order, a cycle between rooms has an upward import in it. */
const upward = (all: Sources): Import[] => importsOf(all).filter(isUpward);

const at = ({ file, line }: Found): string => `${file}:${line}`;

const sources = readSources();

describe('rooms', () => {
  it('are all in the order, and there', () => {
    expect([...new Set(sources.map(({ fileName }) => roomOf(fileName)))].sort()).toEqual([...order].sort());
  });

  it('are in docs/architecture.md as in the order, top first', () => {
    const text = readFileSync(join(import.meta.dirname, '../../../docs/architecture.md'), 'utf8');
    const rows = [...text.matchAll(/^\| `src\/([^`]+)` \| (.*) \|$/gm)].map(([, room, holds]) => [room, holds]);
    expect(rows).toEqual([...rooms].reverse());
  });

  it('import what is below them', () => {
    const found = upward(sources).filter((one) => !isExcepted(one));
    expect(found.map(show)).toEqual([]);
  });

  it('have three exceptions at most, all needed', () => {
    expect(exceptions.length).toBeLessThanOrEqual(3);
    const found = upward(sources);
    expect(exceptions.filter(([from, to]) => !found.some((one) => one.file === from && one.to === to))).toEqual([]);
  });

  it('would be caught importing upward, in whichever way', () => {
    const found = upward(
      parse({
        'src/core/json.ts': `import type { A } from '../tensor/tensor.ts';\nimport { native } from '../native.ts';`,
        'src/tensor/tensor.ts': `import '../core/json.ts';\nexport * from './dtype.ts';\nexport * from '../index.ts';`,
        'src/nn/module.ts': `export type A = import('../models/auto.ts').A;\nawait import('../cli/main.ts');`,
        'src/data/batch.ts': `new Worker(new URL('../train/worker.js', import.meta.url));\n// import '../cli/main.ts'`,
      }),
    );
    expect(found.map(show)).toEqual([
      'src/core/json.ts:1 imports src/tensor/tensor.ts',
      'src/tensor/tensor.ts:3 imports src/index.ts',
      'src/nn/module.ts:1 imports src/models/auto.ts',
      'src/nn/module.ts:2 imports src/cli/main.ts',
      'src/data/batch.ts:1 imports src/train/worker.ts',
    ]);
  });
});

describe('the environment', () => {
  const offenders = (all: Sources): string[] => {
    const found = environmentsOf(all).filter(({ file }) => !readsEnvironment(file));
    return found.map(at);
  };

  it('is read and written in one module and by the commands', () => {
    expect(offenders(sources)).toEqual([]);
  });

  it('would be seen read elsewhere', () => {
    const text =
      "// process.env.A\nprocess.env.A = '1';\nconst { env } = process;\nprocess['env'];\nimport { env as e } from 'node:process';";
    expect(offenders(parse({ 'src/nn/module.ts': text }))).toEqual(
      [2, 3, 4, 5].map((line) => `src/nn/module.ts:${line}`),
    );
    expect(offenders(parse({ 'src/cli/run.ts': text }))).toEqual([]);
  });
});

describe('modules', () => {
  const offenders = (all: Sources): string[] => {
    const found = stateOf(all).filter(({ file }) => !holdsState(file));
    return found.map(at);
  };

  it('hold nothing that changes, but in the context of the process', () => {
    expect(offenders(sources)).toEqual([]);
  });

  it('would be seen holding it', () => {
    const bad = [
      'export let a = 1;',
      'var b: number | undefined;',
      'const c = new Map<string, number>();',
      'const d: WeakMap<object, number> = new WeakMap();',
      'const e: number[] = [];',
      'const f: Record<string, number> = {};',
      'class G { static h = 0; }',
    ];
    const good = [
      "const a: ReadonlyMap<string, number> = new Map([['x', 1]]);",
      "const b = processState('b', 'numbers', new Map<string, number>());",
      'const c: readonly number[] = [];',
      'class D { static readonly e = 0; f = new Map(); }',
      'function g() { let h = 0; return ++h; }',
    ];
    const text = [...good, ...bad].join('\n');
    expect(offenders(parse({ 'src/nn/module.ts': text }))).toEqual(
      bad.map((_, i) => `src/nn/module.ts:${good.length + 1 + i}`),
    );
  });

  it('say what they hold', async () => {
    await import('../../../src/index.ts');
    const held = [...processStates()];
    expect(held.map(([name]) => name)).toEqual(expect.arrayContaining(['streams', 'dist', 'scopes', 'recorder']));
    for (const [, { holds }] of held) expect(holds).toMatch(/^[a-z].{10,}[^.]$/);
    expect(() => processState('streams', 'others', {})).toThrow('two modules hold process state "streams"');
  });
});

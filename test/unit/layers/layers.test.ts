// Dependencies point downward only: types too, and files that are started by their name. Settings travel as arguments.
import { describe, expect, it } from 'vitest';
import { exceptions, readsEnvironment, rooms, temporaryReaders } from './rooms.ts';
import {
  environmentsOf,
  type Found,
  type Import,
  importsOf,
  parse,
  readSources,
  roomOf,
  type Sources,
} from './source.ts';

const order = rooms.map(([room]) => room);
const isUpward = ({ file, to }: Import): boolean => order.indexOf(roomOf(to)) > order.indexOf(roomOf(file));
const isExcepted = ({ file, to }: Import): boolean => exceptions.some((e) => e[0] === file && e[1] === to);
const show = ({ file, line, to }: Import): string => `${file}:${line} imports ${to}`;

/** With a total order, a cycle between rooms has an upward import in it. */
const upward = (all: Sources): Import[] => importsOf(all).filter(isUpward);

const sources = readSources();

describe('rooms', () => {
  it('are all in the order, and there', () => {
    expect([...new Set(sources.map(({ fileName }) => roomOf(fileName)))].sort()).toEqual([...order].sort());
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
    return found.map(({ file, line }: Found) => `${file}:${line}`);
  };

  it('is read and written in one module and by the commands', () => {
    expect(offenders(sources).filter((at) => !temporaryReaders.includes(at.split(':')[0]!))).toEqual([]);
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

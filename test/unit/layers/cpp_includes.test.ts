// The native core has rooms too: what a file includes lies in its own or below it. One file reads the environment.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { nativeRooms, nativeRoomsApart } from './rooms.ts';

const root = join(import.meta.dirname, '../../..');
const rooms = nativeRooms.map(([room]) => room);

interface Source {
  file: string;
  text: string;
}

const roomOf = (file: string): string => (file.startsWith('cpp/') ? file.split('/')[1]! : 'binding');

function sources(): Source[] {
  return ['cpp', 'binding'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => /\.(h|cc|cu)$/.test(name))
      .map((name) => ({ file: `${folder}/${name}`, text: readFileSync(join(root, folder, name), 'utf8') })),
  );
}

/** `file:line includes what`, for includes that point upward, or between rooms that are apart. */
function wrong(files: readonly Source[]): string[] {
  return files.flatMap(({ file, text }) =>
    text.split('\n').flatMap((line, i) => {
      const path = /^\s*#\s*include\s+"([^"]+)"/.exec(line)?.[1];
      if (!path?.includes('/')) return [];
      const [from, to] = [roomOf(file), path.split('/')[0]!];
      const isUpward = rooms.indexOf(to) > rooms.indexOf(from);
      const isApart = nativeRoomsApart.some(([a, b]) => a === from && b === to);
      return isUpward || isApart || !rooms.includes(to) ? [`${file}:${i + 1} includes ${path}`] : [];
    }),
  );
}

const includers = (pattern: RegExp, files: readonly Source[]): string[] =>
  files.filter(({ text }) => pattern.test(text)).map(({ file }) => file);

describe('includes', () => {
  const all = sources();

  it('point downward', () => {
    expect([...new Set(all.map(({ file }) => roomOf(file)))].sort()).toEqual([...rooms].sort());
    expect(wrong(all)).toEqual([]);
  });

  it('have rooms that are in docs/architecture.md as in the order, top first', () => {
    const text = readFileSync(join(root, 'docs/architecture.md'), 'utf8');
    const rows = [...text.matchAll(/^\| `(?:cpp\/(\w+)|(binding))` \| (.*) \|$/gm)].map((row) => [
      row[1] ?? row[2],
      row[3],
    ]);
    expect(rows).toEqual([...nativeRooms].reverse());
  });

  it('would be caught pointing upward', () => {
    const found = wrong([
      { file: 'cpp/core/storage.h', text: '#pragma once\n#include "ops/op.h"\n#include "core/error.h"' },
      { file: 'cpp/files/file.cc', text: '  # include "cuda/stream.h"\n// #include "comm/job.h"' },
      { file: 'cpp/comm/job.cc', text: '#include "elsewhere/x.h"\n#include "job.h"\n#include <napi.h>' },
    ]);
    expect(found).toEqual([
      'cpp/core/storage.h:2 includes ops/op.h',
      'cpp/files/file.cc:1 includes cuda/stream.h',
      'cpp/comm/job.cc:1 includes elsewhere/x.h',
    ]);
  });

  it('of Node are in the binding, of CUDA in its backend and in the collectives over NCCL', () => {
    const mayCuda = (file: string): boolean => /^cpp\/(cuda\/|comm\/nccl_)/.test(file);
    expect(includers(/#include <napi\.h>/, all).filter((file) => roomOf(file) !== 'binding')).toEqual([]);
    expect(includers(/#include <cu\w*\.h>|#include <cuda\//, all).filter((file) => !mayCuda(file))).toEqual([]);
  });
});

describe('the environment', () => {
  const readers = (files: readonly Source[]): string[] => includers(/\b(secure_)?getenv\b|\benviron\b/, files);

  it('is read in one file', () => {
    expect(readers(sources())).toEqual(['cpp/core/settings.cc']);
  });

  it('would be seen read elsewhere', () => {
    const files = [
      { file: 'cpp/cuda/matmul.cu', text: 'bool tf32() { return std::getenv("RANKZERO_TF32"); }' },
      { file: 'cpp/comm/socket.cc', text: 'extern char** environ;' },
      { file: 'binding/ops.cc', text: 'auto* value = secure_getenv(name);' },
      { file: 'cpp/cpu/threads.cc', text: 'return settings().local_world_size;' },
    ];
    expect(readers(files)).toEqual(files.slice(0, 3).map(({ file }) => file));
  });
});

// The hosts of the tests (test/hosts/lab.ts) for benches, which plain Node runs: the types are taken away when it is loaded.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

const folder = join(import.meta.dirname, '../../test/hosts');
const source = readFileSync(join(folder, 'lab.ts'), 'utf8').replaceAll('import.meta.dirname', JSON.stringify(folder));
const { outputText } = ts.transpileModule(source, {
  compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
});

export const { Lab, whyNoHosts } = await import(
  `data:text/javascript;base64,${Buffer.from(outputText).toString('base64')}`
);

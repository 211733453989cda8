// What the sources of `src` say, read with the parser that compiles them: the files that they name.
import { readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import ts from 'typescript';

/** Text of each file, by its path from the root of the package (`src/core/json.ts`). */
export type Sources = ReadonlyMap<string, string>;

/** Something at a line of a file. */
export interface Found {
  file: string;
  line: number;
}

export interface Import extends Found {
  /** The file that is named, by its path from the root. */
  to: string;
}

const root = join(import.meta.dirname, '../../..');

export function readSources(): Sources {
  const paths = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' });
  const files = paths.filter((path) => path.endsWith('.ts')).map((path) => `src/${path}`);
  return new Map(files.sort().map((file) => [file, readFileSync(join(root, file), 'utf8')]));
}

/** `core` for `src/core/json.ts`, `native.ts` for `src/native.ts`. */
export function roomOf(file: string): string {
  return file.split('/')[1]!;
}

/** Calls `visit` for every node of every file. */
function walk(sources: Sources, visit: (node: ts.Node, at: Found) => void): void {
  for (const [file, text] of sources) {
    const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
    const step = (node: ts.Node): void => {
      visit(node, { file, line: source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1 });
      ts.forEachChild(node, step);
    };
    step(source);
  }
}

/** The module that a node names: import and export declarations, `import()`, types, and `new URL(file, import.meta.url)`. */
function specifierOf(node: ts.Node): ts.Node | undefined {
  if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) return node.moduleSpecifier;
  if (ts.isImportTypeNode(node)) return ts.isLiteralTypeNode(node.argument) ? node.argument.literal : undefined;
  if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) return node.arguments[0];
  if (ts.isNewExpression(node) && node.arguments?.[1]?.getText() === 'import.meta.url') return node.arguments[0];
  return undefined;
}

/** Every reference to another file of `src`. Types count. */
export function importsOf(sources: Sources): Import[] {
  const found: Import[] = [];
  walk(sources, (node, at) => {
    const specifier = specifierOf(node);
    if (!specifier || !ts.isStringLiteralLike(specifier) || !specifier.text.startsWith('.')) return;
    const to = posix.join(posix.dirname(at.file), specifier.text.replace(/\.js$/, '.ts'));
    if (to.startsWith('src/')) found.push({ ...at, to });
  });
  return found;
}

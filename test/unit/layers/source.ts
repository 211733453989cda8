// What the sources of `src` say, read with the parser that compiles them: the files that they name, `process.env`, and what modules
// could change.
import { readdirSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import ts from 'typescript';

/** Files as trees, named by their paths from the root of the package (`src/core/json.ts`). */
export type Sources = readonly ts.SourceFile[];

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
  return parse(Object.fromEntries(files.sort().map((file) => [file, readFileSync(join(root, file), 'utf8')])));
}

export function parse(texts: Readonly<Record<string, string>>): Sources {
  return Object.entries(texts).map(([file, text]) => ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true));
}

/** `core` for `src/core/json.ts`, `native.ts` for `src/native.ts`. */
export function roomOf(file: string): string {
  return file.split('/')[1]!;
}

function place(node: ts.Node, source: ts.SourceFile): Found {
  return { file: source.fileName, line: source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1 };
}

/** Calls `visit` for every node of every file. */
function walk(sources: Sources, visit: (node: ts.Node, source: ts.SourceFile) => void): void {
  for (const source of sources) {
    const step = (node: ts.Node): void => {
      visit(node, source);
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

/** Every `process.env`, also taken out of `process` or imported. */
export function environmentsOf(sources: Sources): Found[] {
  const found: Found[] = [];
  const isProcess = (node: ts.Node | undefined): boolean => /^(globalThis\.)?process$/.test(node?.getText() ?? '');
  walk(sources, (node, source) => {
    if (
      (ts.isPropertyAccessExpression(node) && node.name.text === 'env' && isProcess(node.expression)) ||
      (ts.isElementAccessExpression(node) &&
        /^['"`]env/.test(node.argumentExpression.getText()) &&
        isProcess(node.expression)) ||
      (ts.isVariableDeclaration(node) && isProcess(node.initializer)) ||
      (ts.isImportDeclaration(node) && /^(node:)?process$/.test((node.moduleSpecifier as ts.StringLiteral).text))
    )
      found.push(place(node, source));
  });
  return found;
}

const containers = /^(Map|Set|WeakMap|WeakSet|Array)$/;

/** A container that is not typed as one that nobody changes: an empty literal is there to be filled. */
function isMutable({ type, initializer }: ts.VariableDeclaration | ts.PropertyDeclaration): boolean {
  if (type && /^(Readonly|readonly )/.test(type.getText())) return false;
  if (!initializer) return false;
  if (ts.isNewExpression(initializer)) return containers.test(initializer.expression.getText());
  if (ts.isArrayLiteralExpression(initializer)) return initializer.elements.length === 0;
  const isRecord = !type || /^Record</.test(type.getText());
  return isRecord && ts.isObjectLiteralExpression(initializer) && initializer.properties.length === 0;
}

/** Variables of modules and of classes, and constants that hold something to be changed. */
export function stateOf(sources: Sources): Found[] {
  const found: Found[] = [];
  const has = (member: ts.PropertyDeclaration, modifier: ts.SyntaxKind): boolean =>
    member.modifiers?.some(({ kind }) => kind === modifier) === true;
  for (const source of sources) {
    for (const statement of source.statements) {
      if (ts.isVariableStatement(statement)) {
        const isConst = (statement.declarationList.flags & ts.NodeFlags.BlockScoped) === ts.NodeFlags.Const;
        for (const one of statement.declarationList.declarations)
          if (!isConst || isMutable(one)) found.push(place(one, source));
      } else if (ts.isClassDeclaration(statement)) {
        for (const one of statement.members.filter(ts.isPropertyDeclaration))
          if (has(one, ts.SyntaxKind.StaticKeyword) && (!has(one, ts.SyntaxKind.ReadonlyKeyword) || isMutable(one)))
            found.push(place(one, source));
      }
    }
  }
  return found;
}

/** Every reference to another file of `src`. Types count. */
export function importsOf(sources: Sources): Import[] {
  const found: Import[] = [];
  walk(sources, (node, source) => {
    const specifier = specifierOf(node);
    if (!specifier || !ts.isStringLiteralLike(specifier) || !specifier.text.startsWith('.')) return;
    const to = posix.join(posix.dirname(source.fileName), specifier.text.replace(/\.js$/, '.ts'));
    if (to.startsWith('src/')) found.push({ ...place(node, source), to });
  });
  return found;
}

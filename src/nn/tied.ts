// Tied parameters: one parameter under several names. The table of names is data, so that ranks can agree on it.
import type { Module } from './module.ts';
import { Parameter, withMetaParameters } from './parameter.ts';

/** [second name, first name] for every name under which a parameter appears again. */
export function tiedNames(root: Module): [string, string][] {
  const first = new Map<Parameter, string>();
  const tied: [string, string][] = [];
  for (const [name, parameter] of root.namedParameters({ removeDuplicate: false })) {
    const primary = first.get(parameter);
    if (primary === undefined) first.set(parameter, name);
    else tied.push([name, primary]);
  }
  return tied;
}

/** Replaces the parameter at a path such as `lm_head.weight`. */
export function setParameter(root: Module, name: string, parameter: Parameter): void {
  const dot = name.lastIndexOf('.');
  const owner = [...root.namedModules()].find(([path]) => path === name.slice(0, Math.max(0, dot)))?.[1];
  const key = name.slice(dot + 1);
  if (!owner || !(Reflect.get(owner, key) instanceof Parameter)) throw new Error(`there is no parameter ${name}`);
  Reflect.set(owner, key, parameter);
}

/**
 * Makes the ties of `root` those of `table`: ties what is apart, and gives names that are tied too much a parameter of
 * their own (on `device`). Returns a sentence for each change.
 */
export function applyTies(
  root: Module,
  table: readonly (readonly [string, string])[],
  device: 'cpu' | 'meta' = 'meta',
): string[] {
  const changes: string[] = [];
  const wanted = new Map(table);
  for (const [name, primary] of tiedNames(root)) {
    if (wanted.get(name) === primary) continue;
    const parameter = new Map(root.namedParameters()).get(primary)!;
    const create = (): Parameter => new Parameter(parameter.shape, parameter.dtype, { kind: 'constant', value: 0 });
    const own = device === 'meta' ? withMetaParameters(create) : create();
    own.name = name;
    setParameter(root, name, own);
    changes.push(`${name} is not tied to ${primary} on rank 0`);
  }
  const current = new Map(tiedNames(root));
  for (const [name, primary] of table) {
    if (current.get(name) === primary) continue;
    const parameter = new Map(root.namedParameters({ removeDuplicate: false })).get(primary);
    if (!parameter) continue; // the manifest will name it
    setParameter(root, name, parameter);
    changes.push(`${name} is tied to ${primary} on rank 0`);
  }
  return changes;
}

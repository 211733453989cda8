// Modules, as torch.nn.Module: parameters, buffers and children are found by property name, which is the name in the checkpoint.
import type { Tensor } from '../tensor/tensor.ts';
import { copyOn, Parameter } from './parameter.ts';

export abstract class Module {
  training = true;
  private readonly buffers_ = new Map<string, { tensor: Tensor; persistent: boolean }>();

  // biome-ignore lint/suspicious/noExplicitAny: each module has its own signature
  abstract forward(...args: any[]): any;

  /** Whether forward reads parameters of modules below without running these: they cannot be FSDP units of their own. */
  get isAtomic(): boolean {
    return false;
  }

  /** Whether backward reads this module's own parameters: FSDP gathers them for it. */
  get backwardReadsParameters(): boolean {
    return true;
  }

  /** @internal Name of a child's prefix; a wrapper that is transparent for names returns ''. */
  childPrefix(name: string): string {
    return name;
  }

  registerBuffer(name: string, tensor: Tensor, persistent = true): void {
    this.buffers_.set(name, { tensor, persistent });
  }

  buffer(name: string): Tensor {
    const buffer = this.buffers_.get(name);
    if (!buffer) throw new Error(`module ${this.constructor.name} has no buffer ${name}`);
    return buffer.tensor;
  }

  *namedChildren(): Generator<[string, Module]> {
    for (const [name, value] of Object.entries(this)) {
      if (value instanceof Module) yield [this.childPrefix(name), value];
    }
  }

  /** This module and all below it, each once, breadth-first order not guaranteed: parents before children. */
  *namedModules(prefix = '', seen: Set<Module> = new Set()): Generator<[string, Module]> {
    if (seen.has(this)) return;
    seen.add(this);
    yield [prefix, this];
    for (const [name, child] of this.namedChildren()) yield* child.namedModules(join(prefix, name), seen);
  }

  *modules(): Generator<Module> {
    for (const [, module] of this.namedModules()) yield module;
  }

  /** Modules that are alike and make up most of a model (decoder layers): activation checkpointing runs them again. */
  get repeatedModules(): readonly Module[] {
    return [];
  }

  /** Modules that a model advises to shard each as a unit; undefined: it does not say. */
  get unitModules(): readonly Module[] | undefined {
    return undefined;
  }

  /** Parameters registered directly on this module, with tied ones. */
  *ownParameters(): Generator<[string, Parameter]> {
    for (const [name, value] of Object.entries(this)) {
      if (value instanceof Parameter) yield [name, value];
    }
  }

  /** Every parameter once, under its first name (a tied pair is one parameter). */
  *namedParameters(options: { removeDuplicate?: boolean | undefined } = {}): Generator<[string, Parameter]> {
    const seen = new Set<Parameter>();
    for (const [prefix, module] of this.namedModules()) {
      for (const [name, parameter] of module.ownParameters()) {
        if (seen.has(parameter) && options.removeDuplicate !== false) continue;
        seen.add(parameter);
        yield [join(prefix, name), parameter];
      }
    }
  }

  *parameters(): Generator<Parameter> {
    for (const [, parameter] of this.namedParameters()) yield parameter;
  }

  *ownBuffers(): Generator<[string, Tensor, boolean]> {
    for (const [name, { tensor, persistent }] of this.buffers_) yield [name, tensor, persistent];
  }

  /** Buffers, non-persistent ones too. */
  *namedBuffers(): Generator<[string, Tensor]> {
    for (const [prefix, module] of this.namedModules()) {
      for (const [name, tensor] of module.ownBuffers()) yield [join(prefix, name), tensor];
    }
  }

  train(mode = true): this {
    for (const module of this.modules()) module.training = mode;
    return this;
  }

  eval(): this {
    return this.train(false);
  }

  /** Freezes or unfreezes all parameters below. */
  requiresGrad_(value: boolean): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = value;
    return this;
  }

  zeroGrad(): void {
    for (const parameter of this.parameters()) {
      parameter.grad?.dispose();
      parameter.grad = undefined;
    }
  }

  /**
   * Moves parameters and buffers to `device`, in place. A parameter that nobody has read yet is read there, when it is first
   * wanted; one on meta stays there. Mirrors torch.nn.Module.to.
   */
  to(device: 'cpu' | 'cuda'): this {
    moveBuffersToDevice(this, device);
    for (const parameter of this.parameters()) parameter.moveTo(device);
    return this;
  }

  /** Uninitialised parameters on `device`; `recurse: false` for this module's own. Buffers are never emptied. */
  toEmpty(device: 'cpu' | 'cuda' | 'meta' = 'cpu', options: { recurse?: boolean | undefined } = {}): this {
    const targets = options.recurse === false ? [...this.ownParameters()] : [...this.namedParameters()];
    for (const [, parameter] of targets) parameter.toEmpty(device);
    return this;
  }

  /** Default initialisation of this module's own parameters. */
  resetParameters(): void {
    for (const [, parameter] of this.ownParameters()) parameter.resetParameters();
  }

  /** Puts checkpoint names on the parameters below that have none, and says its path to each module. */
  assignParameterNames(): void {
    for (const [name, parameter] of this.namedParameters()) if (!parameter.name) parameter.name = name;
    for (const [path, module] of this.namedModules()) module.assignName(path);
  }

  /** @internal Where this module is in a model. */
  assignName(_path: string): void {}

  /** Parameters and persistent buffers by name. Tied parameters appear under each of their names. */
  stateDict(): Map<string, Tensor> {
    const out = new Map<string, Tensor>();
    for (const [prefix, module] of this.namedModules()) {
      for (const [name, parameter] of module.ownParameters()) out.set(join(prefix, name), parameter);
      for (const [name, tensor, persistent] of module.ownBuffers()) if (persistent) out.set(join(prefix, name), tensor);
    }
    return out;
  }

  /**
   * Copies values in. With `strict` (default) missing, unexpected and mis-shaped names are one error. A meta parameter
   * takes the values over, as torch's assign=True.
   */
  loadStateDict(state: ReadonlyMap<string, Tensor>, options: { strict?: boolean | undefined } = {}): void {
    const own = this.stateDict();
    const problems: string[] = [];
    const names = (label: string, list: string[]): void => {
      if (list.length > 0) problems.push(`${label}: ${list.join(', ')}`);
    };
    if (options.strict !== false) {
      names(
        'missing',
        [...own.keys()].filter((name) => !state.has(name)),
      );
      names(
        'unexpected',
        [...state.keys()].filter((name) => !own.has(name)),
      );
    }
    const misshaped: string[] = [];
    for (const [name, tensor] of own) {
      const given = state.get(name);
      if (given && given.shape.join() !== tensor.shape.join())
        misshaped.push(`${name} is [${given.shape}] but [${tensor.shape}] is wanted`);
    }
    names('shapes differ', misshaped);
    if (problems.length > 0) throw new Error(`loadStateDict: ${problems.join('; ')}`);
    for (const [name, tensor] of own) {
      const given = state.get(name);
      if (given) tensor.copyFrom(given);
    }
  }
}

/** A list of modules, named by index. */
export class ModuleList<T extends Module = Module> extends Module {
  readonly items: T[];

  constructor(items: T[]) {
    super();
    this.items = items;
  }

  override *namedChildren(): Generator<[string, Module]> {
    for (const [index, item] of this.items.entries()) yield [String(index), item];
  }

  forward(): never {
    throw new Error('a ModuleList has no forward; call its items');
  }

  get length(): number {
    return this.items.length;
  }

  [Symbol.iterator](): IterableIterator<T> {
    return this.items.values();
  }
}

function join(prefix: string, name: string): string {
  return prefix && name ? `${prefix}.${name}` : prefix || name;
}

/** Copies buffers that are elsewhere to `device`. Throws for one on meta: it has no values to copy. */
export function moveBuffersToDevice(module: Module, device: 'cpu' | 'cuda' = 'cpu'): void {
  for (const [name, buffer] of module.namedBuffers()) {
    if (buffer.device === 'meta') throw new Error(`buffer ${name} is on meta; it must be rebuilt from the config`);
  }
  for (const inner of module.modules()) {
    for (const [name, buffer, persistent] of [...inner.ownBuffers()])
      if (buffer.device !== device) inner.registerBuffer(name, copyOn(device, buffer, 'other'), persistent);
  }
}

// DelayedParamIniter: initialisation of a model that is on meta, one FSDP unit at a time, and the proof that every parameter
// was written. Mirrors torch.sagemaker's delayed parameter initialization.
import type { Module } from '../nn/module.ts';
import { applyTies, tiedNames } from '../nn/tied.ts';
import { computeDevice } from '../tensor/streams.ts';

export interface DelayedParamIniterOptions {
  /** Initialises one module's own parameters (toEmpty, resetParameters, or values of its own). Default: by type, from the config. */
  initMethodUsingConfig?: ((module: Module) => void) | undefined;
  /** Say what is initialised, on stderr. */
  verbose?: boolean | undefined;
}

export interface ValidateOptions {
  /** Default true; false only runs the function. */
  enabled?: boolean | undefined;
}

export class DelayedParamIniter {
  readonly model: Module;
  private readonly options: DelayedParamIniterOptions;
  private readonly ties: [string, string][];

  constructor(model: Module, options: DelayedParamIniterOptions = {}) {
    this.model = model;
    this.options = options;
    this.ties = tiedNames(model);
  }

  /** Parameters of the model, each once. */
  get countNumParams(): number {
    return countNumParams(this.model);
  }

  /**
   * The function for FSDP's paramInitFn: called once for each module of a unit, own parameters only. The default one draws
   * nothing: with syncModuleStates the values are received, without it the shards are drawn from the seed and the name.
   */
  getParamInitFn(): (module: Module) => void {
    const { initMethodUsingConfig, verbose } = this.options;
    return (module) => {
      const own = [...module.ownParameters()].filter(([, parameter]) => parameter.device === 'meta');
      if (own.length === 0) return;
      if (verbose) console.error(`rankzero: init ${own.map(([, parameter]) => parameter.name).join(', ')}`);
      if (initMethodUsingConfig) initMethodUsingConfig(module);
      else module.resetParameters();
    };
  }

  /** The function for FSDP's postParamInitFn: ties again what was tied. Safe to leave out. */
  getPostParamInitFn(): (module: Module) => void {
    return () => {
      applyTies(this.model, this.ties);
    };
  }

  /**
   * Runs `fn` (which wraps the model) and returns its result. Throws, with names, unless the last writer of every parameter
   * is an initialiser, a file or a receive, and nothing is left on meta or on another device than this process computes on.
   */
  validateParamsAndBuffersInited<T>(fn: () => T, options: ValidateOptions = {}): T {
    const result = fn();
    if (options.enabled === false) return result;
    if (result instanceof Promise) {
      return result.then((value) => {
        this.validate();
        return value;
      }) as T;
    }
    this.validate();
    return result;
  }

  private validate(): void {
    const problems: string[] = [];
    const names = (label: string, list: string[]): void => {
      if (list.length > 0) problems.push(`${label}: ${list.join(', ')}`);
    };
    const parameters = [...this.model.namedParameters()];
    const buffers = [...this.model.namedBuffers()];
    names(
      'still on meta',
      parameters.filter(([, p]) => p.device === 'meta').map(([name]) => name),
    );
    names(
      'never written',
      parameters.filter(([, p]) => p.device !== 'meta' && p.lastWriter === 'none').map(([name]) => name),
    );
    names(
      'buffers on meta',
      buffers.filter(([, b]) => b.device === 'meta').map(([name]) => name),
    );
    const device = computeDevice();
    const elsewhere = [...parameters, ...buffers].filter(([, { device: own }]) => own !== 'meta' && own !== device);
    names(
      `not on ${device}, which this process computes on`,
      elsewhere.map(([name]) => name),
    );
    if (problems.length > 0) throw new Error(`parameters are not initialised; ${problems.join('; ')}`);
  }
}

/** Elements of all parameters, tied ones once. */
export function countNumParams(module: Module): number {
  let count = 0;
  for (const parameter of module.parameters()) count += parameter.numel;
  return count;
}

/** Puts every parameter below on meta; buffers stay. */
export function emptyModuleParams(module: Module): void {
  for (const parameter of module.parameters()) parameter.toMeta();
}

// DelayedParamIniter: initialisation of a model that is on meta, one FSDP unit at a time, and the proof that every parameter
// was written. Mirrors torch.sagemaker's delayed parameter initialization.
import type { Module } from '../nn/module.ts';
import type { Parameter } from '../nn/parameter.ts';
import { applyTies, tiedNames } from '../nn/tied.ts';
import { computeDevice } from '../tensor/streams.ts';
import type { Device } from '../tensor/tensor.ts';

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
  private readonly counted = new Set<Parameter>();

  constructor(model: Module, options: DelayedParamIniterOptions = {}) {
    this.model = model;
    this.options = options;
    this.ties = tiedNames(model);
  }

  /**
   * Counts `parameters`, by default the module's own, as initialised, each once. The function for paramInitFn does so by
   * itself; programs that initialise without it may. Mirrors count_num_params.
   */
  countNumParams(module: Module, ...parameters: readonly Parameter[]): void {
    const own = parameters.length > 0 ? parameters : [...module.ownParameters()].map(([, parameter]) => parameter);
    for (const parameter of own) this.counted.add(parameter);
  }

  /** Elements of the parameters that were initialised so far; `numParameters(model)` when all were. */
  get numParamsInited(): number {
    return total(this.counted);
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
      this.countNumParams(module, ...own.map(([, parameter]) => parameter));
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
    if (problems.length === 0) return;
    const counted = `${this.numParamsInited} of ${numParameters(this.model)} elements went through the init function`;
    throw new Error(`parameters are not initialised; ${problems.join('; ')}; ${counted}`);
  }
}

/** Elements of all parameters below that `counts` accepts, tied ones once. */
export function numParameters(module: Module, counts: (parameter: Parameter) => boolean = () => true): number {
  return total([...module.parameters()].filter(counts));
}

function total(parameters: Iterable<Parameter>): number {
  let count = 0;
  for (const parameter of parameters) count += parameter.numel;
  return count;
}

/**
 * Gives a module's own parameters uninitialised memory on `device`, by default where each is (on meta it stays there); with
 * `recurse` those below too. Buffers keep their values. For init functions, which fill the memory then. Mirrors
 * `torch.sagemaker.utils.module_utils.empty_module_params`.
 */
export function emptyModuleParams(
  module: Module,
  device?: Device | undefined,
  options: { recurse?: boolean | undefined } = {},
): void {
  const own = [...module.ownParameters()].map(([, parameter]) => parameter);
  for (const parameter of options.recurse ? module.parameters() : own) parameter.toEmpty(device ?? parameter.device);
}

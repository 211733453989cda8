// One FSDP unit: a module whose parameters are gathered together. They lie in buckets, which are divided each over its own ranks.
import type { Module } from '../../nn/module.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { ShardBucket } from './bucket.ts';

export class FsdpUnit {
  /** Path of the module; '' for the root. */
  readonly name: string;
  readonly module: Module;
  readonly buckets: readonly ShardBucket[];
  /** Whether backward needs the parameters gathered. */
  readonly isReadByBackward: boolean;

  /** `modules`: those of the unit, whose parameters are in `buckets`. */
  constructor(name: string, module: Module, modules: readonly Module[], buckets: readonly ShardBucket[]) {
    this.name = name;
    this.module = module;
    this.buckets = buckets;
    this.isReadByBackward = modules.some(
      (inner) => inner.backwardReadsParameters && !inner.ownParameters().next().done,
    );
  }

  /** In profiles. */
  get title(): string {
    return titleOf(this.name);
  }

  unshardAsync(): void {
    for (const bucket of this.buckets) bucket.unshardAsync();
  }

  unshard(): void {
    this.unshardAsync();
    for (const bucket of this.buckets) bucket.unshard();
  }

  reshard(): void {
    for (const bucket of this.buckets) bucket.reshard();
  }

  /** Whether its gradients are summed over several hosts. */
  get spansHosts(): boolean {
    return this.buckets.some(({ groups: { shard, replicate } }) => shard.hosts > 1 || replicate.hosts > 1);
  }

  set accumulateOnly(value: boolean) {
    for (const { gradient } of this.buckets) if (gradient) gradient.accumulateOnly = value;
  }

  get accumulateOnly(): boolean {
    return this.buckets.some(({ gradient }) => gradient?.accumulateOnly);
  }

  /** Whether reduceGradients() has anything to do: not inside noSync. */
  get isUnreduced(): boolean {
    return this.buckets.some(({ gradient }) => gradient?.isUnreduced);
  }

  /** Enqueues the reduction of what backward accumulated. The caller disposes the whole gradients. */
  reduceGradients(): Tensor[] {
    return this.buckets.flatMap(({ gradient }) => gradient?.reduce() ?? []);
  }

  zeroGrad(): void {
    for (const { gradient } of this.buckets) gradient?.zero();
  }
}

/** @internal What profiles call a unit. */
export function titleOf(name: string): string {
  return name || 'root';
}

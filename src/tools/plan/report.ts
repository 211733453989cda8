// What a plan says. Bytes are those of the allocator's statistics, for one rank.
import type { DryWire } from '../../native.ts';
import type { FinetuneOptions } from '../../train/options.ts';

/** The memory of one rank on what it computes on, in bytes: peaks, each at its own time. */
export interface PlannedMemory {
  /** This rank's shards of the parameters: float32 masters of what is trained, what is frozen as it is computed with. */
  parameters: number;
  /** Shards of the gradients, and the whole gradients of the units that are being reduced. */
  gradients: number;
  /** What the optimizer keeps of the shards, such as AdamW's two moments. */
  optimizer: number;
  /** Kept for backward, and in work. */
  activations: number;
  /**
   * Shards in the compute dtype, where that is not the masters'; where ranks do not map each other's memory (devices, several
   * hosts), units while they are gathered.
   */
  unshard: number;
  /** Weights on their way while the model is loaded; rank 0 reads them for all. */
  staging: number;
  /** Batches, norms, buffers. */
  other: number;
  /** All of it at once, while the model is loaded and wrapped. */
  loadPeak: number;
  /** All of it at once, in a training step. */
  stepPeak: number;
}

export interface PlanReport {
  model: {
    modelType: string;
    /** Elements, tied ones once. */
    parameters: number;
    /** Those of them that are trained. */
    trainableParameters: number;
    /** FSDP units. */
    units: number;
    /** The unit that takes most when gathered; of this rank's part of the model with tensor parallelism. */
    largestUnit: { name: string; parameters: number; bytes: number };
  };
  ranks: {
    worldSize: number;
    /** Hosts, with as many ranks each. */
    nnodes: number;
    /** The rank that is planned. */
    rank: number;
    /** The three multiply to the world. */
    replicas: number;
    shards: number;
    tensorParallelDegree: number;
  };
  settings: Pick<
    FinetuneOptions,
    'strategy' | 'optimizer' | 'precision' | 'activationCheckpointing' | 'sequenceParallel' | 'batchSize' | 'gradAccum'
  > & { quantize?: FinetuneOptions['quantize']; device: 'cpu' | 'cuda'; seqLength: number };
  memory: PlannedMemory;
  /** What a rank that computes on a device takes of its host's memory. */
  hostMemory?: Pick<PlannedMemory, 'loadPeak' | 'stepPeak'> | undefined;
  /** What this rank sends, by collective, while the model is loaded and in each step: bytes within its host, and to others. */
  wire: { load: DryWire; step: DryWire };
}

// What the launchers of a job tell each other. Node 0's launcher hears all others and decides for the job.
import type { StopSignal } from '../failure.ts';

/** Who takes part: one launcher on each node. */
export interface NodeEntry {
  node: number;
  host: string;
  /** Ranks on the node. */
  nproc: number;
}

/** The end of a job that did not end well. */
export interface JobFailure {
  /** The rank that failed; undefined when it was a launcher. */
  rank: number | undefined;
  node: number;
  host: string;
  /** The exit code of every launcher. */
  code: number;
  message: string;
  /** The error as Node prints it. */
  details?: string | undefined;
  /** Ranks ended as a signal asked them to: nothing to print. */
  isQuiet?: boolean | undefined;
}

export interface Hello extends NodeEntry {
  type: 'hello';
  version: string;
  nnodes: number;
}

export type NodeMessage =
  | Hello
  /** All are here. */
  | { type: 'job'; nodes: NodeEntry[] }
  /** They do not fit together. */
  | { type: 'refused'; message: string }
  | { type: 'beat' }
  /** To node 0: a rank failed here. From it: the job has failed. */
  | { type: 'failure'; failure: JobFailure }
  | { type: 'signal'; signal: StopSignal }
  /** To node 0: all ranks here have ended well, after `stopped` if a signal stopped them. */
  | { type: 'done'; stopped?: StopSignal | undefined }
  /** From node 0: all ranks of the job have. */
  | { type: 'end'; stopped?: StopSignal | undefined };

/** What a launcher is told by the others. */
export interface NodeEvents {
  /** The job has failed; the first failure counts and it is the same on every node. */
  onFailure(failure: JobFailure): void;
  onSignal(signal: StopSignal): void;
  /** All ranks of all nodes have ended well. */
  onEnd(stopped: StopSignal | undefined): void;
}

/** The launchers of a job, as one of them sees them. */
export interface Nodes {
  readonly nodes: readonly NodeEntry[];
  /** The number of this one. */
  readonly node: number;
  /** From now on events arrive, those that came before too. */
  listen(events: NodeEvents): void;
  /** A rank, or this launcher, has failed; `onFailure` says which failure was the job's first. */
  fail(failure: JobFailure): void;
  /** This launcher was asked to stop. */
  relay(signal: StopSignal): void;
  /** All ranks here have ended well. */
  done(stopped: StopSignal | undefined): void;
  /** Resolves when the others have heard the end of the job, or are gone. */
  close(): Promise<void>;
}

// One op of the graph: its inputs, what it saved for backward, and its backward function. Nodes are numbered in the order
// of the forward, so that running them by falling number is a topological order.
import { processState } from '../core/context.ts';
import type { Tensor } from './tensor.ts';

/** The gradient of one input: a tensor that the engine takes over, or undefined where none is wanted or it was written already. */
export type InputGrads = readonly (Tensor | undefined)[];

/** The gradient that has reached input `i` so far, handed over: the node gives it back as a part of that input's gradient. */
export type TakeGrad = (i: number) => Tensor | undefined;

export interface GradNode {
  readonly name: string;
  readonly sequence: number;
  /** The inputs that may want a gradient; undefined where none does. */
  readonly inputs: readonly (Tensor | undefined)[];
  /**
   * Turns the gradient of the output into those of the inputs. The engine owns and disposes `gradOut`. What a node takes of an
   * input it owns; what it leaves the engine adds.
   */
  backward(gradOut: Tensor, take: TakeGrad): InputGrads;
  /** Frees what was saved. Called once, after backward or when the graph is dropped. */
  release(): void;
  done: boolean;
}

const nodes: { last: number } = processState('nodes', 'the number of the last node of a graph', { last: 0 });

/** @internal */
export function nextSequence(): number {
  return ++nodes.last;
}

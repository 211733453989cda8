// The flat layout of a unit: its parameters one after the other, padded so that every rank's shard has the same length.
// Trainable parameters come first, so that a shard's trainable part is contiguous.
import type { Parameter } from '../../nn/parameter.ts';

export interface Span {
  parameter: Parameter;
  /** First element in the flat buffer. */
  offset: number;
  numel: number;
}

/** A range of a span that lies in a window of the flat buffer. */
export interface SpanRange {
  span: Span;
  /** First element within the parameter. */
  start: number;
  /** First element within the window. */
  at: number;
  length: number;
}

// Views start on 64-byte boundaries in float32 and 32-byte ones in bfloat16.
const alignment = 16;
const align = (n: number): number => Math.ceil(n / alignment) * alignment;

export class FlatLayout {
  readonly spans: readonly Span[];
  /** Elements of the flat buffer, padding included. */
  readonly numel: number;
  /** Elements of one rank's shard. */
  readonly shardNumel: number;
  /** Elements before the first frozen parameter. */
  readonly trainableNumel: number;
  /** Elements of parameters, without padding. */
  readonly parameterNumel: number;

  constructor(parameters: readonly Parameter[], shards: number) {
    const trainable = parameters.filter((parameter) => parameter.requiresGrad);
    const ordered = [...trainable, ...parameters.filter((parameter) => !parameter.requiresGrad)];
    let offset = 0;
    let trainableNumel = 0;
    const spans: Span[] = [];
    for (const [i, parameter] of ordered.entries()) {
      spans.push({ parameter, offset, numel: parameter.numel });
      offset = align(offset + parameter.numel);
      if (i < trainable.length) trainableNumel = offset;
    }
    this.spans = spans;
    this.shardNumel = align(Math.ceil(offset / shards));
    this.numel = this.shardNumel * shards;
    this.trainableNumel = trainableNumel;
    this.parameterNumel = parameters.reduce((sum, parameter) => sum + parameter.numel, 0);
  }

  /** The parts of parameters in elements [begin, end) of the flat buffer. */
  *within(begin: number, end: number): Generator<SpanRange> {
    for (const span of this.spans) {
      const from = Math.max(begin, span.offset);
      const to = Math.min(end, span.offset + span.numel);
      if (from < to) yield { span, start: from - span.offset, at: from - begin, length: to - from };
    }
  }

  /** The parts of elements [begin, end) that belong to no parameter, as [from, to) within the window. */
  *gaps(begin: number, end: number): Generator<[number, number]> {
    let at = begin;
    for (const { at: from, length } of this.within(begin, end)) {
      if (begin + from > at) yield [at - begin, from];
      at = begin + from + length;
    }
    if (at < end) yield [at - begin, end - begin];
  }
}

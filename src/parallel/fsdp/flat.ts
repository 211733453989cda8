// The flat layout of a bucket: its parameters (the bytes of quantised ones) one after the other, padded so that every rank's shard has the same length.
import type { Parameter } from '../../nn/parameter.ts';

export interface Span {
  parameter: Parameter;
  /** First element in the flat buffer. */
  offset: number;
  numel: number;
}

/** A range of a span that lies in a window of the flat buffer. */
export interface SpanRange {
  parameter: Parameter;
  /** First element within the parameter. */
  start: number;
  /** First element within the window. */
  at: number;
  length: number;
}

/** Elements of the flat buffer that are those of neighbouring parameters, without a gap between them. */
export interface FlatRange {
  offset: number;
  numel: number;
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
  /** Elements up to the end of the last parameter, aligned. */
  readonly usedNumel: number;
  /** Elements of parameters, without padding. */
  readonly parameterNumel: number;

  constructor(parameters: readonly Parameter[], shards: number) {
    let offset = 0;
    this.spans = parameters.map((parameter) => {
      const span = { parameter, offset, numel: parameter.storedNumel };
      offset = align(offset + parameter.storedNumel);
      return span;
    });
    this.usedNumel = offset;
    this.shardNumel = align(Math.ceil(offset / shards));
    this.numel = this.shardNumel * shards;
    this.parameterNumel = parameters.reduce((sum, parameter) => sum + parameter.numel, 0);
  }

  /** The range of these parameters, if they lie one behind the other in this order without a gap. */
  rangeOf(parameters: readonly Parameter[]): FlatRange | undefined {
    const first = this.spans.findIndex(({ parameter }) => parameter === parameters[0]);
    if (first < 0) return undefined;
    const { offset } = this.spans[first]!;
    let end = offset;
    for (const [i, parameter] of parameters.entries()) {
      const span = this.spans[first + i];
      if (span?.parameter !== parameter || span.offset !== end) return undefined;
      end += span.numel;
    }
    return { offset, numel: end - offset };
  }

  /** The parts of parameters in elements [begin, end) of the flat buffer. */
  *within(begin: number, end: number): Generator<SpanRange> {
    for (const { parameter, offset, numel } of this.spans) {
      const from = Math.max(begin, offset);
      const to = Math.min(end, offset + numel);
      if (from < to) yield { parameter, start: from - offset, at: from - begin, length: to - from };
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

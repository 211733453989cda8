// Views of a flat buffer: one for each parameter, and one for each range of neighbours that was asked for.
import type { Parameter } from '../../nn/parameter.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { FlatLayout, FlatRange } from './flat.ts';

export class FlatViews implements Disposable {
  private readonly flat: Tensor;
  private readonly parameters: ReadonlyMap<Parameter, Tensor>;
  private readonly ranges = new Map<FlatRange, Tensor>();

  constructor({ spans }: FlatLayout, flat: Tensor) {
    this.flat = flat;
    this.parameters = new Map(
      spans.map(({ parameter, offset }) => [parameter, flat.slice(offset, parameter.storedShape)] as const),
    );
  }

  of(parameter: Parameter): Tensor | undefined {
    return this.parameters.get(parameter);
  }

  /** The elements of a range, in one dimension. The range is the key: whoever asks again has the same one. */
  range(range: FlatRange): Tensor {
    let view = this.ranges.get(range);
    if (!view) {
      view = this.flat.slice(range.offset, [range.numel]);
      this.ranges.set(range, view);
    }
    return view;
  }

  /** Ends the views, not the buffer. */
  [Symbol.dispose](): void {
    for (const view of this.parameters.values()) view.dispose();
    for (const view of this.ranges.values()) view.dispose();
    this.ranges.clear();
  }
}

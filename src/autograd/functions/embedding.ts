// Embedding lookup.
import { native } from '../../native.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { output, record, writeGrad } from '../record.ts';

/**
 * Rows of `table` (vocab, dim) at `ids` (int64, any shape): shape [...ids.shape, dim]. The caller has checked that every id
 * is within the vocabulary. A table that is a part of the vocabulary starts at its row `first`; ids of other parts give zeros,
 * and no gradient.
 */
export function embedding(ids: Tensor, table: Tensor, first = 0): Tensor {
  const [vocab, dim] = [table.size(0), table.size(1)];
  const rows = ids.numel;
  const out = output([...ids.shape, dim], table.dtype, table.device);
  native.embeddingForward(out.handle, ids.handle, table.handle, rows, vocab, dim, first);
  return record('embedding', out, [table], (saved) => {
    const kept = saved.keep(ids);
    return (dOut) => [
      writeGrad(table, (target, accumulate) =>
        native.embeddingBackward(target, kept.handle, dOut.handle, rows, vocab, dim, first, accumulate),
      ),
    ];
  });
}

// How the modules of a family are split over a tensor-parallel group: data, keyed by module path.

/**
 * - `vocabulary`: embedding or head; rows of the (padded) vocabulary. Embedding rows are summed over the group.
 * - `column`: output features of a linear, bias too. Its input must be gathered by a module above.
 * - `keyValue`: as `column`, by key/value heads; fewer heads than ranks are replicated.
 * - `row`: input features of a linear; outputs are summed over the group, the bias is added once.
 * - `rowWeight`: as `row`, but the module above sums (experts).
 * - `gathered`: a module whose input every rank needs whole, with gradients that are summed over the group.
 * - `attention`: `gathered`, and its `heads` and `kvHeads` are divided.
 * - `experts`: `gathered`, and its output is summed over the group.
 * - `perRow`: whole on every rank, works on rows alone (norms).
 * - `finalNorm`: `perRow`; its output feeds the head, and is gathered.
 * - `partial`: whole on every rank, but each rank makes a part of its gradient (norms of single heads, routers).
 */
export type TensorParallelStyle =
  | 'vocabulary'
  | 'column'
  | 'keyValue'
  | 'row'
  | 'rowWeight'
  | 'gathered'
  | 'attention'
  | 'experts'
  | 'perRow'
  | 'finalNorm'
  | 'partial';

/** Styles by module path; `*` stands for one component. Every module that holds parameters must be named. */
export type TensorParallelPlan = Readonly<Record<string, TensorParallelStyle>>;

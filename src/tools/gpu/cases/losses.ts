// Cross entropies, routing, and the experts of a mixture.
import { reference } from '../check.ts';
import type { Draw } from '../draw.ts';
import { floatDTypes, type Input, input, type OpCase, type Output, output } from '../operand.ts';

type Cases = (draw: Draw) => Iterable<OpCase>;

function* linearCrossEntropy(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const [rows, dim, vocab] of draw.sizes(
        [
          [1, 5, 3],
          [13, 40, 77],
        ],
        [
          [700, 512, 8000],
          [129, 1000, 1001],
        ],
      )) {
        const labels = input('int64', draw.labels(rows!, vocab!));
        const dw = output(
          'dw',
          accumulate ? 'float32' : dtype,
          vocab! * dim!,
          accumulate ? draw.normal(vocab! * dim!, 0.01) : undefined,
        );
        yield {
          label: `${rows}×${dim} to ${vocab}, accumulate ${accumulate}`,
          operands: [
            output('loss', 'float32', 1),
            output('dx', dtype, rows! * dim!),
            dw,
            input(dtype, draw.normal(rows! * dim!)),
            input(dtype, draw.normal(vocab! * dim!, 1 / Math.sqrt(dim!))),
            labels,
            rows,
            dim,
            vocab,
            accumulate ? 100 : 0,
            accumulate,
          ],
        };
      }
}

function* crossEntropy(draw: Draw): Iterable<OpCase> {
  for (const [rows, vocab] of draw.sizes(
    [
      [1, 3],
      [13, 777],
    ],
    [
      [500, 32_000],
      [77, 128_256],
    ],
  ))
    for (const gradient of [true, false])
      yield {
        label: `${rows}×${vocab}${gradient ? '' : ', loss alone'}`,
        operands: [
          output('loss', 'float32', 1),
          gradient ? output('d_logits', 'float32', rows! * vocab!) : undefined,
          input('float32', draw.normal(rows! * vocab!, 3)),
          input('int64', draw.labels(rows!, vocab!)),
          rows,
          vocab,
          gradient ? 0 : 50,
        ],
      };
}

/** The second of two parts of a vocabulary, whose last columns are padding. */
const parts = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [3, 5, 5, 4],
      [13, 333, 300, 310],
    ],
    [[400, 16_000, 16_000, 15_999]],
  );

function* vocabStats(draw: Draw): Iterable<OpCase> {
  for (const [rows, vocab, first, valid] of parts(draw))
    yield {
      label: `${rows}×${vocab} from ${first}, ${valid} valid`,
      operands: [
        output('stats', 'float32', rows! * 3),
        input('float32', draw.normal(rows! * vocab!, 3)),
        input('int64', draw.labels(rows!, first! + valid!)),
        rows,
        vocab,
        first,
        Math.min(valid!, vocab!),
      ],
    };
}

function* vocabCrossEntropy(draw: Draw): Iterable<OpCase> {
  for (const to of [...floatDTypes, 'in place'] as const)
    for (const [rows, vocab, first, limit] of parts(draw)) {
      const valid = Math.min(limit!, vocab!);
      const [ranks, from] = [2, 2];
      const labels = draw.labels(rows! + from, first! + valid);
      const logits = draw.normal(rows! * vocab!, 3);
      const stats = [draw.normal(rows! * first!, 3), logits].flatMap((values, rank) => {
        const columns = rank === 0 ? first! : vocab!;
        const all = [
          output('stats', 'float32', rows! * 3),
          input('float32', values),
          input('int64', labels.slice(from)),
        ];
        return [
          ...(reference('vocab_stats', [
            ...all,
            rows,
            columns,
            rank === 0 ? 0 : first!,
            rank === 0 ? first! : valid,
          ])[0] as Float32Array),
        ];
      });
      const inPlace = output('d_logits', 'float32', logits.length, logits);
      const [gradient, values] =
        to === 'in place' ? [inPlace, inPlace] : [output('d_logits', to, logits.length), input('float32', logits)];
      yield {
        label: `${rows}×${vocab} from ${first}, gradient ${to}`,
        operands: [
          output('loss', 'float32', 1, Float32Array.of(2)),
          gradient,
          values,
          input('float32', Float32Array.from(stats)),
          input('int64', labels),
          ranks,
          from,
          rows,
          vocab,
          first,
          valid,
          0,
          true,
        ],
      };
    }
}

const routes = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [1, 2, 1],
      [37, 8, 2],
      [20, 5, 5],
    ],
    [
      [3000, 8, 2],
      [1001, 64, 6],
      [500, 128, 8],
    ],
  );

function routing(
  draw: Draw,
  dtype: 'float32' | 'bfloat16' | 'float16',
  [rows, experts, topK]: number[],
  balanced: boolean,
) {
  const tables = [
    output('weights', 'float32', rows! * topK!),
    output('chosen', 'int32', rows! * topK!),
    output('order', 'int32', rows! * topK!),
    output('offsets', 'int32', experts! + 1),
    output('probs', 'float32', rows! * experts!),
    balanced ? output('balance', 'float32', 2 * experts!) : undefined,
  ];
  return [...tables, input(dtype, draw.normal(rows! * experts!, 1.5)), rows, experts, topK, Math.max(1, rows! - 2)];
}

function* routingForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const balanced of [true, false])
      for (const sizes of routes(draw))
        yield {
          label: `${sizes[0]} rows, best ${sizes[2]} of ${sizes[1]}${balanced ? ', balanced' : ''}`,
          operands: routing(draw, dtype, sizes, balanced),
        };
}

function* routingBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const balanced of [true, false])
      for (const sizes of routes(draw)) {
        const [rows, experts, topK] = sizes;
        if (topK === 1) continue; // its weight is 1 whatever the logits
        const [weights, chosen, , , probs] = reference('routing_forward', routing(draw, 'float32', sizes, false));
        const balance = balanced ? input('float32', draw.normal(experts!)) : undefined;
        yield {
          label: `${rows} rows, best ${topK} of ${experts}${balanced ? ', balanced' : ''}`,
          operands: [
            output('d_logits', dtype, rows! * experts!),
            input('float32', draw.normal(rows! * topK!)),
            input('float32', weights!),
            input('int32', chosen!),
            input('float32', probs!),
            balance,
            rows,
            experts,
            topK,
            Math.max(1, rows! - 2),
            0.25,
          ],
        };
      }
}

const mixtures = (draw: Draw): number[][] =>
  draw.sizes(
    [
      [9, 8, 8, 2, 1],
      [19, 24, 40, 4, 2],
    ],
    [
      [300, 256, 512, 8, 2],
      [77, 120, 136, 5, 3],
      [2000, 512, 256, 8, 2],
    ],
  );

function mixture(draw: Draw, dtype: 'float32' | 'bfloat16' | 'float16', [rows, dim, inner, experts, topK]: number[]) {
  const [weights, , order, offsets] = reference(
    'routing_forward',
    routing(draw, 'float32', [rows!, experts!, topK!], false),
  );
  const matrices = (): Input[] => Array.from({ length: experts! }, () => input(dtype, draw.normal(inner! * dim!, 0.3)));
  return {
    x: input(dtype, draw.normal(rows! * dim!)),
    weights: input('float32', weights!),
    order: input('int32', order!),
    offsets: input('int32', offsets!),
    w1: matrices(),
    w2: matrices(),
    w3: matrices(),
    pairs: rows! * topK! * inner!,
  };
}

function* expertsForward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const sizes of mixtures(draw))
      for (const kept of [true, false]) {
        const [rows, dim, inner, experts, topK] = sizes;
        const m = mixture(draw, dtype, sizes);
        const products = ['gate', 'up'].map((name) => (kept ? output(name, dtype, m.pairs) : undefined));
        yield {
          label: `${rows}×${dim}, inner ${inner}, best ${topK} of ${experts}${kept ? ', GEMMs kept' : ''}`,
          operands: [
            output('y', dtype, rows! * dim!),
            ...products,
            m.x,
            m.weights,
            m.order,
            m.offsets,
            m.w1,
            m.w2,
            m.w3,
            rows,
            dim,
            inner,
            topK,
          ],
        };
      }
}

function* expertsBackward(draw: Draw): Iterable<OpCase> {
  for (const dtype of floatDTypes)
    for (const accumulate of [false, true])
      for (const sizes of mixtures(draw)) {
        const [rows, dim, inner, experts, topK] = sizes;
        const m = mixture(draw, dtype, sizes);
        const [, gate, up] = reference('experts_forward', [
          output('y', dtype, rows! * dim!),
          output('gate', dtype, m.pairs),
          output('up', dtype, m.pairs),
          m.x,
          m.weights,
          m.order,
          m.offsets,
          m.w1,
          m.w2,
          m.w3,
          rows,
          dim,
          inner,
          topK,
        ]);
        const to = accumulate ? 'float32' : dtype;
        const gradients = (name: string): Output[] =>
          Array.from({ length: experts! }, (_, e) =>
            output(`${name} of expert ${e}`, to, inner! * dim!, accumulate ? draw.normal(inner! * dim!) : undefined),
          );
        yield {
          label: `${rows}×${dim}, inner ${inner}, best ${topK} of ${experts}, accumulate ${accumulate}`,
          operands: [
            output('dx', dtype, rows! * dim!),
            output('d_weights', 'float32', rows! * topK!),
            gradients('dw1'),
            gradients('dw2'),
            gradients('dw3'),
            input(dtype, draw.normal(rows! * dim!)),
            m.x,
            input(dtype, gate!),
            input(dtype, up!),
            m.weights,
            m.order,
            m.offsets,
            m.w1,
            m.w2,
            m.w3,
            Array<boolean>(3 * experts!).fill(accumulate),
            rows,
            dim,
            inner,
            topK,
          ],
        };
      }
}

function* balancingLoss(draw: Draw, backward: boolean): Iterable<OpCase> {
  for (const [layers, experts, rows] of [
    [1, 2, 10],
    [3, 8, 200],
    [32, 64, 4096],
  ]) {
    const balance = input('float32', draw.uniform(layers! * 2 * experts!, 0, rows!).map(Math.round));
    const one = input('float32', draw.uniform(1, 1, 3));
    const out = backward ? output('d_probs', 'float32', experts!) : output('total', 'float32', 1);
    yield {
      label: `${layers} layers of ${experts} experts`,
      operands: [out, one, balance, layers, experts, rows, 0.02],
    };
  }
}

export const lossCases: Record<string, Cases> = {
  linear_cross_entropy: linearCrossEntropy,
  cross_entropy: crossEntropy,
  vocab_stats: vocabStats,
  vocab_cross_entropy: vocabCrossEntropy,
  routing_forward: routingForward,
  routing_backward: routingBackward,
  experts_forward: expertsForward,
  experts_backward: expertsBackward,
  balancing_loss_forward: (draw) => balancingLoss(draw, false),
  balancing_loss_backward: (draw) => balancingLoss(draw, true),
};

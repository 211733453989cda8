// Every op, for what goes over all of them.
#pragma once
#include "ops/activation.h"
#include "ops/adafactor.h"
#include "ops/adamw.h"
#include "ops/adamw8bit.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/dora.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "ops/qkv.h"
#include "ops/quantized.h"
#include "ops/random.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/sgd.h"

namespace rz {

template <class... Ops>
struct OpList {
  template <class Visit>
  static void each(Visit visit) {
    (visit.template operator()<Ops>(), ...);
  }
};

using AllOps = OpList<Fill, Copy, CopyRows, Add, Scale, SumSquares, ClipFactor, RandomFill, Dropout, EmbeddingForward, EmbeddingBackward,
                      LinearForward, LinearBackwardInput, LinearBackwardWeight, QuantizeWeight, SliceQuantized, DequantizeWeight,
                      QuantizedLinearForward, QuantizedLinearBackwardInput, RowSquares, DoraForward, DoraBackward, RmsNormForward, RmsNormBackward,
                      LayerNormForward, LayerNormBackward, RopeTable, Rope, SplitRope, MergeRope, SplitQkv, MergeQkv, AttentionForward,
                      AttentionBackward, SwigluForward, SwigluBackward, PackedSwigluForward, PackedSwigluBackward, GeluForward, GeluBackward, RoutingForward,
                      RoutingBackward, ExpertsForward, ExpertsBackward, BalancingLossForward, BalancingLossBackward,
                      LinearCrossEntropy, CrossEntropy, VocabStats, VocabCrossEntropy, AdamW, Adamw8bitPeaks, Adamw8bit, Sgd, AdafactorSums,
                      AdafactorFactors, AdafactorNorm, AdafactorStep>;

}  // namespace rz

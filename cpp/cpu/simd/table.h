// The functions that exist once per instruction set. Each works on one thread's share of an op; cpp/cpu/*.cc split
// the work. Arrays of three are indexed by the floating dtype: float32, bfloat16, float16.
#pragma once
#include <stdint.h>

namespace rz::cpu {

struct AttentionShape {
  const void *q, *k, *v;  // (rows, heads, head_dim), (rows, kv_heads, head_dim)
  const int32_t *cu_q, *cu_k;
  int64_t q_rows, heads, kv_heads, head_dim, window;
  float scale;
};
struct AttentionForwardArgs : AttentionShape {
  void* o;
  float* lse;
};
struct AttentionBackwardArgs : AttentionShape {
  void *dq, *dk, *dv;
  const void *d_o, *o;
  const float* lse;
};

struct AdamWScalars {
  float decay;            // 1 - lr · weight_decay
  float one_minus_beta1;  // lerp's weight
  float beta2, one_minus_beta2;
  float sqrt_bias2, eps, step_size;  // step_size = lr / (1 - beta1^step)
  float grad_scale;
};

struct Adamw8bitRun {
  uint8_t *m, *v;           // codes of the elements
  float *m_scale, *v_scale; // of the run's block
  int64_t n;                // at most 256
};
// How codes are found: a table by the upper bits of the magnitude says where to look first (cpu/quant_map.h).
struct QuantMap {
  const float* values;             // 256, ascending
  const float* middles;            // 255 between neighbours, and infinity
  const uint8_t* first;            // (2, keys): the least code of values of a key, and of negative values of it
};
struct QuantMaps {
  QuantMap m, v;
};
// Of a magnitude: the upper 16 bits of its float32, from 2^-22 to 1, and what is below and above.
constexpr int32_t kQuantKeyBase = 105 << 7, kQuantKeys = ((127 - 105) << 7) + 2;

struct SgdScalars {
  float lr;
  float keep, take;                // of the buffer and of the gradient in the new buffer
  float weight_decay;
  float grad_share, buffer_share;  // in the update
  float grad_scale;
};

struct AdafactorScalars {
  float row, mean, floor;  // the variance of an element is row · column / mean, at least floor
  float grad_scale;
  float decay, step;       // of the parameter, and of the update
};

struct Table {
  const char* name;
  // elementwise.cc
  void (*to_f32[3])(float* y, const void* x, int64_t n);
  void (*from_f32[3])(void* y, const float* x, int64_t n);
  void (*add[3])(void* y, const void* a, const void* b, int64_t n);
  void (*add_to_f32[3])(float* y, const float* a, const void* b, int64_t n);
  void (*scale[3])(void* y, const void* x, float factor, int64_t n);
  void (*scale_add[3])(void* y, const void* x, float factor, int64_t n);
  double (*sum_squares[3])(const void* x, int64_t n);
  void (*column_sums[3])(float* sums, const void* x, int64_t stride, int64_t rows, int64_t columns);  // sums +=
  void (*drop[3])(void* y, const void* x, const float* draws, int64_t n, float p, float factor);  // x · factor, or 0 below p
  // activation.cc
  void (*swiglu_forward[3])(void* y, const void* gate, const void* up, int64_t n);
  void (*swiglu_backward[3])(void* d_gate, void* d_up, const void* dy, const void* gate, const void* up, int64_t n);
  // Of one row of act = silu(gate) · up that enters the result times `weight`: d_act is the gradient of weight · act over
  // weight. Writes weight · act, d_gate and d_up (which may be gate and up), returns Σ d_act · act.
  float (*weighted_swiglu_backward[3])(void* d_gate, void* d_up, void* weighted_act, const float* d_act, const void* gate,
                                       const void* up, float weight, int64_t n);
  void (*gelu_forward[3])(void* y, const void* x, int64_t n);
  void (*gelu_backward[3])(void* dx, const void* dy, const void* x, int64_t n);
  void (*gelu_tanh_forward[3])(void* y, const void* x, int64_t n);
  void (*gelu_tanh_backward[3])(void* dx, const void* dy, const void* x, int64_t n);
  // norm.cc
  void (*rms_norm_forward[3])(void* y, float* rstd, const void* x, const void* w, int64_t rows, int64_t dim, float eps);
  // dw_sums (dim), optional: += this block's Σ dy · x̂
  void (*rms_norm_backward[3])(void* dx, float* dw_sums, const void* dy, const void* x, const void* w,
                               const float* rstd, int64_t rows, int64_t dim);
  // layer_norm.cc
  void (*layer_norm_forward[3])(void* y, float* mean, float* rstd, const void* x, const void* w, const void* b,
                                int64_t rows, int64_t dim, float eps);
  // sums (2, dim), optional: += this block's Σ dy · x̂ and Σ dy
  void (*layer_norm_backward[3])(void* dx, float* sums, const void* dy, const void* x, const void* w,
                                 const float* mean, const float* rstd, int64_t rows, int64_t dim);
  // rope.cc
  void (*rope[3])(void* y, const void* x, const float* cos, const float* sin, int64_t rows, int64_t heads,
                  int64_t head_dim, int64_t rotary, bool inverse, float* scratch);  // scratch (rotary)
  // softmax.cc: returns -log p[label]; d (n) of the dtype, optional, = (p - onehot) · scale. `row` is overwritten.
  double (*cross_entropy_row[3])(void* d, float* row, int64_t n, int64_t label, float scale);
  // The maximum and Σ exp(row − maximum), as two floats: (−∞, 0) of nothing.
  void (*softmax_stats_row)(float* stats, const float* row, int64_t n);
  // d (n) = exp(row − top) · factor; d may be `row`.
  void (*softmax_gradient_row[3])(void* d, const float* row, int64_t n, float top, float factor);
  // adamw.cc: [dtype of param][dtype of grad]
  void (*adamw[3][3])(void* p, const void* g, float* m, float* v, int64_t n, const AdamWScalars& s);
  // adamw8bit.cc: peaks of a run's new moments; one update, with the peaks of the whole block where it has other runs
  void (*adamw8bit_peaks[3])(float* m_peak, float* v_peak, const void* g, const Adamw8bitRun& run, const AdamWScalars& s,
                             const QuantMaps& maps);
  void (*adamw8bit[3][3])(void* p, const void* g, const Adamw8bitRun& run, const float* m_peak, const float* v_peak,
                          const AdamWScalars& s, const QuantMaps& maps);
  // sgd.cc: the same; without a buffer there is no momentum
  void (*sgd[3][3])(void* p, const void* g, float* buffer, int64_t n, const SgdScalars& s);
  // adafactor.cc
  void (*column_squares[3])(double* sums, const void* x, int64_t stride, int64_t rows, int64_t columns);  // sums +=
  void (*adafactor_variance[3])(float* variance, const void* g, int64_t n, float grad_scale, float weight);
  double (*adafactor_norm[3])(const void* g, const float* columns, int64_t n, const AdafactorScalars& s);
  void (*adafactor_step[3][3])(void* p, const void* g, const float* columns, int64_t n, const AdafactorScalars& s);
  // random.cc: elements first … first + n of the named tensor
  void (*uniform)(float* y, int64_t n, uint64_t seed, uint64_t key, uint64_t first, float a, float b);
  void (*normal)(float* y, int64_t n, uint64_t seed, uint64_t key, uint64_t first, float mean, float std);
  // quantize.cc. Codes are found from their first element on, which may be in the low half of its byte.
  // `n` elements in blocks of `block`: two codes a byte (n may be odd at the end of all), and absmax of each block
  void (*quantize_nf4)(uint8_t* codes, float* absmax, const float* x, int64_t n, int64_t block);
  // y (n) = elements first … of codes in pieces of `piece` with absmax[0], absmax[1], …; `into`: elements of the first piece before
  void (*dequantize_nf4[3])(void* y, const uint8_t* codes, int64_t first, int64_t n, int64_t piece, int64_t into, const float* absmax);
  // A row; returns its absmax
  float (*quantize_int8)(int8_t* codes, const float* x, int64_t n);
  void (*dequantize_int8[3])(void* y, const int8_t* codes, int64_t n, float absmax);
  // attention.cc: one sequence and key/value head; scratch sizes in floats
  int64_t attention_q_block;
  int64_t (*attention_forward_scratch)(const AttentionShape& a, int64_t max_keys);
  int64_t (*attention_backward_scratch)(const AttentionShape& a, int64_t max_rows);
  void (*attention_forward[3])(const AttentionForwardArgs& a, int64_t sequence, int64_t kv_head, int64_t first_block,
                               int64_t last_block, float* scratch);
  void (*attention_backward[3])(const AttentionBackwardArgs& a, int64_t sequence, int64_t kv_head, float* scratch);
};

// The table of this processor, chosen once (RANKZERO_ISA=baseline|avx2|avx512|avx512bf16 narrows the choice).
const Table& simd();

#ifdef RZ_ISA
namespace RZ_ISA {
void add_elementwise(Table& t);
void add_activation(Table& t);
void add_norm(Table& t);
void add_layer_norm(Table& t);
void add_rope(Table& t);
void add_softmax(Table& t);
void add_adamw(Table& t);
void add_adamw8bit(Table& t);
void add_sgd(Table& t);
void add_adafactor(Table& t);
void add_random(Table& t);
void add_quantize(Table& t);
void add_attention(Table& t);
}  // namespace RZ_ISA
#endif

}  // namespace rz::cpu

// Fills the three entries of one function template.
#define RZ_ENTRY(table, kernel) \
  (table).kernel[0] = kernel<float>, (table).kernel[1] = kernel<bf16>, (table).kernel[2] = kernel<f16>

// Collects the kernels of this instruction set.
#include "cpu/simd/table.h"

namespace rz::cpu::RZ_ISA {

#define RZ_TEXT2(x) #x
#define RZ_TEXT(x) RZ_TEXT2(x)

Table make_table() {
  Table t{};
  t.name = &RZ_TEXT(RZ_ISA)[4];  // without "isa_"
  add_elementwise(t);
  add_activation(t);
  add_norm(t);
  add_layer_norm(t);
  add_rope(t);
  add_softmax(t);
  add_adamw(t);
  add_adamw8bit(t);
  add_sgd(t);
  add_adafactor(t);
  add_random(t);
  add_quantize(t);
  add_attention(t);
  return t;
}

}  // namespace rz::cpu::RZ_ISA

// RZ_OPERANDS lists every field of an op, in the order of the declarations.
#include "check.h"

namespace {

struct Any {
  template <class T>
  operator T() const;
};

template <class Op, size_t... kIndex>
constexpr bool takes(std::index_sequence<kIndex...>) {
  return requires { Op{(static_cast<void>(kIndex), Any{})...}; };
}

template <class Op>
void test_operands() {
  Op op{};
  auto members = op.members();
  constexpr size_t kCount = std::tuple_size_v<decltype(members)>;
  static_assert(takes<Op>(std::make_index_sequence<kCount>()) && !takes<Op>(std::make_index_sequence<kCount + 1>()),
                "RZ_OPERANDS leaves out a field");
  std::apply(
      [](auto&... member) {
        const void* at[] = {&member...};
        report(begin(std::string("operands ") + Op::name), std::is_sorted(std::begin(at), std::end(at)));
      },
      members);
}

void test_all() {
  rz::AllOps::each([]<class Op>() { test_operands<Op>(); });
}
Test registered(test_all);

}  // namespace

// Creating a oneDNN matmul, the one thing that differs between oneDNN 2 and 3.
#pragma once
#include <oneapi/dnnl/dnnl.hpp>

namespace rz::cpu {

inline dnnl::matmul::primitive_desc matmul_desc(const dnnl::engine& engine, const dnnl::memory::desc& a,
                                                const dnnl::memory::desc& b, const dnnl::memory::desc& bias,
                                                const dnnl::memory::desc& c, const dnnl::primitive_attr& attr) {
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(engine, a, b, bias, c, attr);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, bias, c), attr, engine);
#endif
}

}  // namespace rz::cpu

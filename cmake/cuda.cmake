# Whether the CUDA backend is compiled: where nvcc is found and either a driver is present or RANKZERO_CUDA=on says so;
# RANKZERO_CUDA=off refuses. Included before any target. Without it cpp/core/no_cuda.cc stands in, and the addon is the same
# otherwise: nothing of CUDA but the runtime, which is linked statically, is known before run time.
# A build folder remembers what the environment said last: it configures itself anew when sources come or go.
set(RANKZERO_CUDA "auto" CACHE STRING "auto, on or off")
set(RANKZERO_CUDA_ARCHITECTURES "" CACHE STRING "a list; empty: this machine's, else 90a")
foreach(variable RANKZERO_CUDA RANKZERO_CUDA_ARCHITECTURES)
  if(DEFINED ENV{${variable}})
    set_property(CACHE ${variable} PROPERTY VALUE "$ENV{${variable}}")
  endif()
endforeach()
if(NOT RANKZERO_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "RANKZERO_CUDA must be auto, on or off but is ${RANKZERO_CUDA}")
endif()

if(NOT RANKZERO_CUDA STREQUAL "off")
  include(CheckLanguage)
  check_language(CUDA)
  if(RANKZERO_CUDA STREQUAL "on" AND NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "RANKZERO_CUDA=on, but nvcc was not found. Put it in PATH, or name it in CUDACXX.")
  endif()
endif()

if(CMAKE_CUDA_COMPILER AND (RANKZERO_CUDA STREQUAL "on" OR (RANKZERO_CUDA STREQUAL "auto" AND EXISTS /proc/driver/nvidia/version)))
  set(RANKZERO_WITH_CUDA TRUE)
  # One architecture compiles soonest: this machine's, else Hopper's. `npm run build:release` names them all.
  if(RANKZERO_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${RANKZERO_CUDA_ARCHITECTURES})
  elseif(EXISTS /proc/driver/nvidia/version AND CMAKE_VERSION VERSION_GREATER_EQUAL 3.24)
    set(CMAKE_CUDA_ARCHITECTURES native)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 90a)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # named below
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  # A Hopper names itself 90, which leaves out what only 90a has.
  if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native" AND "90-real" IN_LIST CMAKE_CUDA_ARCHITECTURES_NATIVE)
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  find_package(CUDAToolkit REQUIRED)
endif()

# The objects that an executable or the addon links beside rankzero_core: rankzero_backend.
function(rankzero_backend)
  if(NOT RANKZERO_WITH_CUDA)
    add_library(rankzero_backend OBJECT cpp/core/no_cuda.cc cpp/comm/no_nccl.cc)
    target_include_directories(rankzero_backend PRIVATE cpp)
    target_compile_options(rankzero_backend PRIVATE -Wall -Wextra -Werror)
    return()
  endif()
  file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS cpp/cuda/*.cu cpp/cuda/*.cc cpp/comm/nccl_[cw]*.cc)
  add_library(rankzero_backend OBJECT ${CUDA_SOURCES})
  target_include_directories(rankzero_backend PRIVATE cpp)
  target_include_directories(rankzero_backend SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  string(REPLACE ";" ", " architectures "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_definitions(rankzero_backend PRIVATE "RANKZERO_CUDA_ARCHITECTURES=\"${architectures}\"")
  # One architecture: line numbers for profilers, and device code that test/emulated can read. Several: small.
  list(LENGTH CMAKE_CUDA_ARCHITECTURES architecture_count)
  if(architecture_count GREATER 1)
    set(FOR_USE -Xfatbin=-compress-all)
  else()
    set(FOR_USE -lineinfo)
  endif()
  target_compile_options(rankzero_backend PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr ${FOR_USE} -Xcompiler=-Wall,-Wextra -Werror=all-warnings>)
  # Random numbers, codes of 8 bits and quantised weights are the same everywhere: a fused multiply-add would change them.
  set_source_files_properties(cpp/cuda/random.cu cpp/cuda/adamw8bit.cu cpp/cuda/quantized.cu PROPERTIES COMPILE_OPTIONS --fmad=false)
  target_link_libraries(rankzero_backend INTERFACE CUDA::cudart_static)
  set_target_properties(rankzero_backend PROPERTIES LINKER_LANGUAGE CXX)
  set(LAUNCHER sh ${CMAKE_CURRENT_SOURCE_DIR}/cmake/nvcc.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
  set_target_properties(rankzero_backend PROPERTIES CUDA_COMPILER_LAUNCHER "${LAUNCHER}")
endfunction()

# _C: the CPU kernels. The same source is compiled once per instruction set, each into a namespace of its own
# (SMOOTHLOSS_ISA), and csrc/cpu/isa.cpp chooses at run time.
include(CheckCXXCompilerFlag)

# The flags below are GCC's and Clang's; clang-cl, the Clang that takes MSVC's flags, is told so.
set(_as_is "")
if(CMAKE_CXX_COMPILER_FRONTEND_VARIANT STREQUAL "MSVC")
  set(_as_is "/clang:")
endif()
function(smoothloss_kernel_options target)
  list(TRANSFORM ARGN PREPEND "${_as_is}")
  target_compile_options(${target} PRIVATE ${ARGN})
endfunction()

set(_isas baseline)
set(_flags_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND _isas avx2 avx512)
  set(_flags_avx2 -mavx2 -mfma)
  set(_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512)
  check_cxx_compiler_flag(${_as_is}-mavx512bf16 SMOOTHLOSS_COMPILES_AVX512BF16)
  if(SMOOTHLOSS_COMPILES_AVX512BF16)
    list(APPEND _isas avx512bf16)
    set(_flags_avx512bf16 ${_flags_avx512} -mavx512bf16)
  endif()
endif()

set(_optimize -O3)
if(SMOOTHLOSS_SANITIZE)
  set(_optimize -O1)
endif()

# What is the same for every instruction set.
add_library(smoothloss_cpu OBJECT csrc/cpu/huge_pages.cpp csrc/cpu/isa.cpp csrc/cpu/jensen_shannon.cpp
            csrc/cpu/parallel.cpp
            csrc/cpu/processor.cpp csrc/cpu/rewards.cpp csrc/cpu/sampling.cpp csrc/cpu/smoothed_target.cpp
            csrc/cpu/sparse_cross_entropy.cpp csrc/cpu/target_indices.cpp csrc/cpu/token_statistics.cpp
            csrc/cpu/weights.cpp csrc/ngram/document_counter.cpp)
target_link_libraries(smoothloss_cpu PRIVATE smoothloss_flags)
set(_objects smoothloss_cpu)
foreach(_isa IN LISTS _isas)
  set(_target smoothloss_cpu_${_isa})
  list(APPEND _objects ${_target})
  add_library(${_target} OBJECT csrc/cpu/sparse_cross_entropy_kernels.cpp csrc/cpu/draw_kernels.cpp
              csrc/cpu/jensen_shannon_kernels.cpp csrc/cpu/token_statistics_kernels.cpp)
  target_link_libraries(${_target} PRIVATE smoothloss_flags)
  target_compile_definitions(${_target} PRIVATE SMOOTHLOSS_ISA=${_isa})
  # Vectors wider than a register of the instruction set are never passed between translation units: -Wno-psabi.
  smoothloss_kernel_options(${_target} ${_flags_${_isa}} ${_optimize} -fno-math-errno -fno-trapping-math
                            -ffp-contract=fast -Wno-psabi)
  string(TOUPPER ${_isa} _ISA)
  target_compile_definitions(smoothloss_cpu PRIVATE SMOOTHLOSS_HAS_${_ISA})
endforeach()

# A matmul for machines with AVX512_BF16, asked for at run time.
add_library(smoothloss_cpu_bfloat16 OBJECT csrc/cpu/bfloat16_matmul.cpp)
list(APPEND _objects smoothloss_cpu_bfloat16)
target_link_libraries(smoothloss_cpu_bfloat16 PRIVATE smoothloss_flags)
smoothloss_kernel_options(smoothloss_cpu_bfloat16 ${_optimize} -Wno-psabi)
if(avx512bf16 IN_LIST _isas)
  smoothloss_kernel_options(smoothloss_cpu_bfloat16 ${_flags_avx512bf16})
  target_compile_definitions(smoothloss_cpu_bfloat16 PRIVATE SMOOTHLOSS_HAS_AVX512BF16)
  check_cxx_compiler_flag("${_as_is}-mamx-tile;${_as_is}-mamx-bf16" SMOOTHLOSS_COMPILES_AMX)
  if(SMOOTHLOSS_COMPILES_AMX)
    smoothloss_kernel_options(smoothloss_cpu_bfloat16 -mamx-tile -mamx-bf16)
    target_compile_definitions(smoothloss_cpu_bfloat16 PRIVATE SMOOTHLOSS_HAS_AMX)
  endif()
endif()

# All of it, without a word of Python.
add_library(smoothloss_kernels INTERFACE)
foreach(_target IN LISTS _objects)
  target_sources(smoothloss_kernels INTERFACE $<TARGET_OBJECTS:${_target}>)
endforeach()
find_package(Threads REQUIRED)
target_link_libraries(smoothloss_kernels INTERFACE Threads::Threads ${CMAKE_DL_LIBS})

if(SMOOTHLOSS_TESTS)
  add_executable(test_kernels tests/csrc/test_kernels.cpp)
  target_link_libraries(test_kernels PRIVATE smoothloss_flags smoothloss_kernels)
endif()
if(SMOOTHLOSS_PYTHON)
  pybind11_add_module(_C MODULE csrc/bindings_cpu.cpp csrc/bindings_cpu_rewards.cpp csrc/bindings_cpu_sampling.cpp)
  target_link_libraries(_C PRIVATE smoothloss_flags smoothloss_kernels)
  install(TARGETS _C LIBRARY DESTINATION .)
endif()

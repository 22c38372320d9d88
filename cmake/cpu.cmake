# _C: the CPU kernels. The same source is compiled once per instruction set, each into a namespace of its own
# (SMOOTHLOSS_ISA), and csrc/cpu/isa.cpp chooses at run time.
include(CheckCXXCompilerFlag)
set(_isas baseline)
set(_flags_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND _isas avx2 avx512)
  set(_flags_avx2 -mavx2 -mfma)
  set(_flags_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512)
  check_cxx_compiler_flag(-mavx512bf16 SMOOTHLOSS_COMPILES_AVX512BF16)
  if(SMOOTHLOSS_COMPILES_AVX512BF16)
    list(APPEND _isas avx512bf16)
    set(_flags_avx512bf16 ${_flags_avx512} -mavx512bf16)
  endif()
endif()

set(_optimize -O3)
if(SMOOTHLOSS_SANITIZE)
  set(_optimize -O1)
endif()

pybind11_add_module(_C MODULE csrc/bindings_cpu.cpp csrc/bindings_cpu_rewards.cpp csrc/bindings_cpu_sampling.cpp
                csrc/cpu/huge_pages.cpp csrc/cpu/isa.cpp csrc/cpu/jensen_shannon.cpp csrc/cpu/rewards.cpp csrc/cpu/sampling.cpp
                csrc/cpu/smoothed_target.cpp csrc/cpu/sparse_cross_entropy.cpp csrc/cpu/target_indices.cpp
                csrc/cpu/token_statistics.cpp csrc/cpu/weights.cpp
                csrc/ngram/document_counter.cpp)
target_link_libraries(_C PRIVATE smoothloss_flags)
foreach(_isa IN LISTS _isas)
  add_library(smoothloss_cpu_${_isa} OBJECT csrc/cpu/sparse_cross_entropy_kernels.cpp csrc/cpu/draw_kernels.cpp
              csrc/cpu/jensen_shannon_kernels.cpp csrc/cpu/token_statistics_kernels.cpp)
  target_link_libraries(smoothloss_cpu_${_isa} PRIVATE smoothloss_flags)
  target_compile_definitions(smoothloss_cpu_${_isa} PRIVATE SMOOTHLOSS_ISA=${_isa})
  # Vectors wider than a register of the instruction set are never passed between translation units: -Wno-psabi.
  target_compile_options(smoothloss_cpu_${_isa} PRIVATE
    ${_flags_${_isa}} ${_optimize} -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wno-psabi)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(smoothloss_cpu_${_isa} PRIVATE OpenMP::OpenMP_CXX)
  endif()
  target_sources(_C PRIVATE $<TARGET_OBJECTS:smoothloss_cpu_${_isa}>)
  string(TOUPPER ${_isa} _ISA)
  target_compile_definitions(_C PRIVATE SMOOTHLOSS_HAS_${_ISA})
endforeach()

# A matmul for machines with AVX512_BF16, asked for at run time.
add_library(smoothloss_cpu_bfloat16 OBJECT csrc/cpu/bfloat16_matmul.cpp)
target_link_libraries(smoothloss_cpu_bfloat16 PRIVATE smoothloss_flags)
target_compile_options(smoothloss_cpu_bfloat16 PRIVATE ${_optimize} -Wno-psabi)
if(avx512bf16 IN_LIST _isas)
  target_compile_options(smoothloss_cpu_bfloat16 PRIVATE ${_flags_avx512bf16})
  target_compile_definitions(smoothloss_cpu_bfloat16 PRIVATE SMOOTHLOSS_HAS_AVX512BF16)
endif()
if(OpenMP_CXX_FOUND)
  target_link_libraries(smoothloss_cpu_bfloat16 PRIVATE OpenMP::OpenMP_CXX)
  target_link_libraries(_C PRIVATE OpenMP::OpenMP_CXX)
endif()
target_sources(_C PRIVATE $<TARGET_OBJECTS:smoothloss_cpu_bfloat16>)
install(TARGETS _C LIBRARY DESTINATION .)

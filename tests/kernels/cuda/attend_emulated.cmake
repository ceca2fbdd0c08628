# Attention on the emulated GPU: the cases of attend_device_test. Shared memory is laid out in
# another way for each head size, with and without refinements, and for each number of replicated
# tables.
set(cuda ${PROJECT_SOURCE_DIR}/kernels/cuda)
set_source_files_properties(
  ${cuda}/attend_launch.cu ${cuda}/attend_rope.cu ${cuda}/merge_partials.cu
  PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(fq_attend_emulated STATIC ${PROJECT_SOURCE_DIR}/tests/testing/attend_case.cc
  ${cuda}/attend_heads.cc ${cuda}/attend_launch.cu ${cuda}/attend_plan.cc
  ${cuda}/attend_rope.cu ${cuda}/merge_partials.cu ${cuda}/tables_device.cc)
target_compile_options(fq_attend_emulated PRIVATE -Wno-unknown-pragmas)
target_link_libraries(fq_attend_emulated PUBLIC fq_cuda_emulated fq_test_codec_set)

# fq_attend_emulated_test(<base or refined> <replicated tables> <head size> <filter>)
function(fq_attend_emulated_test variant tables head_size filter)
  set(name attend_emulated_${variant}_${tables}_${head_size}_test)
  add_executable(${name} attend_device_test.cc emulation/attend_kernels.cc)
  target_compile_options(${name} PRIVATE -Wno-unknown-pragmas)
  target_compile_definitions(${name} PRIVATE
    FQ_REPLICATED_TABLES=${tables} FQ_HEAD_SIZE=${head_size}
    $<$<STREQUAL:${variant},refined>:FQ_REFINED>)
  target_link_libraries(${name} PRIVATE fq_attend_emulated GTest::gtest)
  gtest_discover_tests(${name} TEST_FILTER "${filter}" DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 600)
endfunction()

fq_attend_emulated_test(base 3 64 "*-*Refinements*:*Long*")
fq_attend_emulated_test(refined 3 64 "*Refinements*")
foreach(schedule backward shuffled)
  add_test(NAME attend_emulated_base_${schedule}
    COMMAND attend_emulated_base_3_64_test --schedule=${schedule} --gtest_filter=*Sink*)
  add_test(NAME attend_emulated_refined_${schedule}
    COMMAND attend_emulated_refined_3_64_test --schedule=${schedule}
      --gtest_filter=*Refinements*-*AnySplit*)
endforeach()
foreach(tables 2 1)
  fq_attend_emulated_test(base ${tables} 64 "*Ragged*:*Sink*")
  fq_attend_emulated_test(refined ${tables} 64 "*Refinements*-*AnySplit*")
endforeach()
fq_attend_emulated_test(base 3 128 "*Sink*:*QueryHeads*:*Rope*")
fq_attend_emulated_test(base 1 256 "*Sink*:*QueryHeads*:*Rope*")
fq_attend_emulated_test(refined 3 256 "*Refinements*-*AnySplit*")

fq_test(merge_partials_emulated_test merge_partials_test.cc LIBS fq_attend_emulated)

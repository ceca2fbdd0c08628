# Attention on the emulated GPU: the cases of attend_device_test at head size 64, with and without
# refinements, whose kernels lay out shared memory differently.
set(cuda ${PROJECT_SOURCE_DIR}/kernels/cuda)
set_source_files_properties(${cuda}/attend_launch.cu
  PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
foreach(variant base refined)
  set(name attend_emulated_${variant}_test)
  add_executable(${name} attend_device_test.cc emulation/attend_kernels.cc
    ${PROJECT_SOURCE_DIR}/tests/testing/attend_case.cc ${cuda}/attend_heads.cc
    ${cuda}/attend_launch.cu ${cuda}/attend_plan.cc ${cuda}/tables_device.cc)
  target_compile_options(${name} PRIVATE -Wno-unknown-pragmas)
  target_link_libraries(${name} PRIVATE fq_cuda_emulated fq_test_codec_set GTest::gtest)
  if(variant STREQUAL refined)
    target_compile_definitions(${name} PRIVATE FQ_REFINED)
    set(filter "*Refinements*/0")
    set(others ${filter})
  else()
    set(filter "*/0:-*Refinements*:*Long*")
    set(others "*Sink*/0")
  endif()
  gtest_discover_tests(${name} TEST_FILTER ${filter} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 600)
  foreach(schedule backward shuffled)
    add_test(NAME ${name}_${schedule}
      COMMAND ${name} --schedule=${schedule} --gtest_filter=${others})
  endforeach()
endforeach()

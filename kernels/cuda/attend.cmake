# Attention on a GPU. The kernel's headers become text in the library: they are compiled again at
# run time, for the profiles of a codec set.
set(FQ_ATTEND_FILES
  kernels/base/host_device.h
  kernels/cuda/attend_coded.cuh
  kernels/cuda/attend_groups.cuh
  kernels/cuda/attend_kernel.cuh
  kernels/cuda/attend_params.h
  kernels/cuda/attend_plain.cuh
  kernels/cuda/attend_ptx.cuh
  kernels/cuda/attend_refined.cuh
  kernels/cuda/attend_shared.h
  kernels/cuda/attend_softmax.cuh
  kernels/cuda/attend_tables.cuh
  kernels/cuda/tables_layout.h)
set(FQ_ATTEND_HEADERS "")
foreach(file ${FQ_ATTEND_FILES})
  file(READ ${PROJECT_SOURCE_DIR}/${file} text)
  string(APPEND FQ_ATTEND_HEADERS "    {\"${file}\", R\"fq(${text})fq\"},\n")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${file})
endforeach()
configure_file(${CMAKE_CURRENT_LIST_DIR}/attend_headers.cc.in
  ${CMAKE_CURRENT_BINARY_DIR}/attend_headers.cc @ONLY)

target_sources(fq_cuda PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/attend_compile.cc
  ${CMAKE_CURRENT_LIST_DIR}/attend_heads.cc
  ${CMAKE_CURRENT_LIST_DIR}/attend_launch.cu
  ${CMAKE_CURRENT_LIST_DIR}/attend_plan.cc
  ${CMAKE_CURRENT_LIST_DIR}/attend_rope.cu
  ${CMAKE_CURRENT_LIST_DIR}/attend_source.cc
  ${CMAKE_CURRENT_LIST_DIR}/merge_partials.cu
  ${CMAKE_CURRENT_BINARY_DIR}/attend_headers.cc)
target_link_libraries(fq_cuda PRIVATE CUDA::nvrtc OpenSSL::Crypto)

# Encode and decode of pages, a part of fq_cuda. The machine code of the kernels is kept in
# CUBIN_FOLDER for tests/kernels/cuda/test_machine_code.py.
set(FQ_PAGE_KERNELS
  cuda/coder_lists.cu cuda/decode_pages.cu cuda/encode_pages.cu cuda/plain_pages.cu)
set(CUBIN_FOLDER ${PROJECT_BINARY_DIR}/cubins)
file(MAKE_DIRECTORY ${CUBIN_FOLDER})
set_source_files_properties(${FQ_PAGE_KERNELS} PROPERTIES
  COMPILE_OPTIONS "--keep;--keep-dir=${CUBIN_FOLDER}")
target_sources(fq_cuda PRIVATE cuda/coder_tables.cc cuda/cuda_backend.cc ${FQ_PAGE_KERNELS})

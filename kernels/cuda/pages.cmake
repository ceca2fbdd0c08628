# Encode and decode of pages, a part of fq_cuda. Their machine code is not compressed, so that
# tests/kernels/cuda/machine_code.py can read it.
set(FQ_PAGE_KERNELS
  cuda/coder_lists.cu cuda/decode_pages.cu cuda/encode_pages.cu cuda/plain_pages.cu
  cuda/universal_pages.cu cuda/verify_pages.cu)
set_source_files_properties(${FQ_PAGE_KERNELS} PROPERTIES COMPILE_OPTIONS "-no-compress")
target_sources(fq_cuda PRIVATE cuda/coder_tables.cc cuda/cuda_backend.cc ${FQ_PAGE_KERNELS})

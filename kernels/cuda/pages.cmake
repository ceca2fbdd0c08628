# Encode and decode of pages, a part of fq_cuda.
target_sources(fq_cuda PRIVATE
  cuda/coder_tables.cc
  cuda/cuda_backend.cc
  cuda/decode_pages.cu
  cuda/encode_pages.cu
  cuda/plain_pages.cu)

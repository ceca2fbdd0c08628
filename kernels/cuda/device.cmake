# The Device of a GPU, a part of fq_cuda.
target_sources(fq_cuda PRIVATE cuda/cuda_device.cc cuda/device_codec.cc cuda/device_queue.cc
  cuda/ipc_memory.cc cuda/region_sums.cu cuda/slab_jobs.cu cuda/sm_share.cc)

// FQ_HD marks functions that run on the host and, when nvcc compiles them, on the device too.
#pragma once

#if defined(__CUDACC__)
#define FQ_HD __host__ __device__
#else
#define FQ_HD
#endif

/* A library that says it is NCCL of some version and has nothing else. */
int ncclGetVersion(int *version) {
  *version = FQ_NCCL_CODE;
  return 0;
}

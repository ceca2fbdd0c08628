// main of device_node_test, which is its own worker process.
#include "gtest/gtest.h"
#include "tests/testing/cuda_worker.h"

int main(int argc, char** argv) {
  fq::RunIfWorker(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

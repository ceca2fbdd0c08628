#include "server/malloc_tuning.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>

namespace fq {
namespace {

// Sanitizers bring their own malloc, which takes no options.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kGlibcMalloc = false;
#else
constexpr bool kGlibcMalloc = true;
#endif

TEST(MallocTuning, LargeBlocks_StayOnTheHeap) {
  if (!kGlibcMalloc) GTEST_SKIP() << "not glibc's malloc";
  ASSERT_TRUE(TuneMalloc().ok());
  const size_t mapped = mallinfo2().hblks;
  void* volatile block = std::malloc(16 << 20);
  EXPECT_EQ(mallinfo2().hblks, mapped);  // by default it would be a mapping of its own
  std::free(block);
}

}  // namespace
}  // namespace fq

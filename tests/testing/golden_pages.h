// The golden pages of tests/golden: what the encoder makes of fixed rows and synthetic codec sets.
// Written once by write_golden_pages, compared by golden_pages_test, read by the tests of
// client/python through manifest.json.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace fq {

struct GoldenFile {
  std::string name;  // in tests/golden
  std::vector<std::byte> bytes;
};

// All files, encoded by `backend`; manifest.json is the last.
std::vector<GoldenFile> MakeGoldenFiles(const Backend& backend);

}  // namespace fq

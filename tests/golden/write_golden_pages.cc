// Writes the golden pages that do not exist yet into a folder; never changes one that does.
#include <filesystem>
#include <fstream>
#include <iostream>

#include "tests/testing/golden_pages.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: write_golden_pages DIR\n";
    return 2;
  }
  for (const fq::GoldenFile& golden : fq::MakeGoldenFiles(*fq::ScalarBackend())) {
    const std::filesystem::path path = std::filesystem::path(argv[1]) / golden.name;
    if (std::filesystem::exists(path)) continue;
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(golden.bytes.data()),
               static_cast<std::streamsize>(golden.bytes.size()));
    if (!file) {
      std::cerr << "cannot write " << path << "\n";
      return 1;
    }
  }
  return 0;
}

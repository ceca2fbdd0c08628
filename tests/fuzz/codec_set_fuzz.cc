// CodecSet::Parse on hostile files: as they are, and with length and SHA-256 repaired so that what
// lies behind those checks is reached. A file that parses must be usable.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/codec_set.h"
#include "tests/testing/codec_set_builder.h"

namespace {

constexpr int kHeadSize = 64;
constexpr size_t kHeaderBytes = 64;
constexpr size_t kJsonBytesAt = 16;

void Require(bool holds) {
  if (!holds) std::abort();
}

const std::vector<std::byte>& ValidFile() {
  static const auto* file = new std::vector<std::byte>(fq::BuildCodecSet(1, 1, kHeadSize, 7));
  return *file;
}

uint64_t ReadU64(const std::vector<std::byte>& file, size_t at) {
  uint64_t value;
  std::memcpy(&value, file.data() + at, sizeof(value));
  return value;
}

// The arrays of the valid file behind another JSON text.
std::vector<std::byte> WithJson(const uint8_t* json, size_t bytes) {
  const std::vector<std::byte>& valid = ValidFile();
  const size_t arrays_at = (kHeaderBytes + ReadU64(valid, kJsonBytesAt) + 63) / 64 * 64;
  std::vector<std::byte> file(valid.begin(), valid.begin() + kHeaderBytes);
  const uint64_t json_bytes = bytes;
  std::memcpy(file.data() + kJsonBytesAt, &json_bytes, sizeof(json_bytes));
  const auto* text = reinterpret_cast<const std::byte*>(json);
  file.insert(file.end(), text, text + bytes);
  file.resize((file.size() + 63) / 64 * 64);
  file.insert(file.end(), valid.begin() + static_cast<ptrdiff_t>(arrays_at), valid.end());
  return file;
}

// The valid file with words overwritten: pairs of (u16 place / 4 from the end, u32 value).
std::vector<std::byte> WithWords(const uint8_t* data, size_t size) {
  std::vector<std::byte> file = ValidFile();
  for (; size >= 6; data += 6, size -= 6) {
    uint16_t place;
    std::memcpy(&place, data, sizeof(place));
    std::memcpy(file.data() + file.size() - 4 * (1 + place % (file.size() / 4)), data + 2, 4);
  }
  return file;
}

void UseQuality(const fq::CodecSet& set) {
  const size_t sides = 2 * static_cast<size_t>(set.layers()) * static_cast<size_t>(set.kv_heads());
  for (const auto* errors : {&set.expected_error().compact, &set.expected_error().near_lossless}) {
    Require(errors->empty() || errors->size() == sides);
    for (double error : *errors) Require(std::isfinite(error) && error >= 0);
  }
  for (const fq::LossAtLength& entry : set.loss_by_length()) {
    Require(entry.profile == "compact" || entry.profile == "near-lossless");
    Require(std::isfinite(entry.loss.perplexity_excess_percent) && entry.loss.tokens >= 0);
  }
}

void UseAll(const fq::CodecSet& set) {
  UseQuality(set);
  for (int layer = 0; layer < set.layers(); ++layer) {
    for (int head = 0; head < set.kv_heads(); ++head) {
      const size_t groups = static_cast<size_t>(set.head_size() / 8);
      Require(set.profile(layer, head).k.size() == groups);
      Require(set.profile(layer, head).v_refinement.size() == groups);
      for (const fq::HeadCodec* codec : {&set.k(layer, head), &set.v(layer, head)}) {
        const size_t d = static_cast<size_t>(set.head_size());
        for (size_t i = 0; i < d * d; ++i) Require(std::isfinite(codec->a[i] + codec->a_inv[i]));
        for (size_t i = 0; i < d; ++i) Require(std::isfinite(codec->mu[i] + codec->sd[i]));
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t mode = data[0] % 4;
  ++data, --size;
  std::vector<std::byte> file;
  if (mode == 0) {
    file.assign(reinterpret_cast<const std::byte*>(data),
                reinterpret_cast<const std::byte*>(data) + size);
  } else if (mode == 1) {
    file = WithWords(data, size);
  } else {
    file = mode == 2 ? WithJson(data, size) : WithWords(data, size);
    fq::SealCodecSet(&file);
  }
  if (auto set = fq::CodecSet::Parse(std::move(file)); set.ok()) UseAll(**set);
  return 0;
}

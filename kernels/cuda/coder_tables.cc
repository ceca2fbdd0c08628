#include "kernels/cuda/coder_tables.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/codec/chain_word.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/quantise.h"
#include "kernels/cuda/coder_lists.h"
#include "kernels/cuda/tables_layout.h"

namespace fq {
namespace {

// The largest power of two up to |value|; 1 for 0. Within what FP32 and FP16 products can hold.
double PowerOfTwo(double value) {
  if (value == 0) return 1;
  return std::exp2(std::clamp(std::floor(std::log2(std::fabs(value))), -40.0, 40.0));
}

// Of the forward matrix, to a factor of two: so that small elements have their second terms too.
constexpr double kLargestElement = 8192;

uint32_t HalfPair(float low, float high) {
  return FloatToHalf(low) | static_cast<uint32_t>(FloatToHalf(high)) << 16;
}

// A value as two FP16; without the second one beyond their range.
uint32_t HalfTerms(float value) {
  const float high = HalfToFloat(FloatToHalf(std::min(value, kInputLimit)));
  return HalfPair(high, value > kInputLimit ? 0.0f : value - high);
}

// The part of SearchTables that the MMAs of class 1 read.
void FillOctetRows(SearchTables* tables) {
  for (int entry = 0; entry < kTableEntries; ++entry) {
    float square = 0.0f;
    const int half = entry / 8 % 2;  // rows g, or g + 8 of a tile
    auto* lanes = tables->octet_rows[entry / 16] + entry % 8 * 4;
    for (int t = 0; t < 4; ++t) {
      const uint32_t pair = tables->class1[entry][t];
      for (int e : {0, 1}) square += std::pow(HalfToFloat(PairHalf(pair, e)), 2.0f);
      lanes[t][half] = pair ^ 0x80008000u;
      lanes[t][2 + half] = t == 1 ? HalfPair(1.0f, 1.0f) : 0;
    }
    lanes[0][2 + half] = HalfTerms(square / 2 + kDistanceOffset);
  }
}

void FillSearchTables(const HeadCodec::Tables& words, SearchTables* tables) {
  for (int entry = 0; entry < kTableEntries; ++entry) {
    for (int e : {0, 1}) tables->class4[entry][e] = EntryValue(words.class4 + entry, 4, e);
    tables->class2[entry] = words.class2[entry];
    for (int t = 0; t < 4; ++t) {
      tables->class1[entry][t] = ChainPair(words.class1[2 * entry + t / 2], t % 2);
    }
  }
  FillOctetRows(tables);
}

// Fills the coder of one side of a (layer, head).
class CoderWriter {
 public:
  CoderWriter(int head_size, bool is_key, const HeadCodec& codec, std::byte* coder)
      : layout_{head_size}, d_(head_size), is_key_(is_key), codec_(codec), coder_(coder) {}

  // `before`: classes of the side whose codes lie before in the page; null for K.
  void WriteClasses(int part, const std::vector<uint8_t>& classes,
                    const std::vector<uint8_t>* before) {
    std::memcpy(coder_ + layout_.Classes(part), classes.data(), classes.size());
    int start = 0;
    if (before != nullptr) {
      for (int bits : *before) start += GroupBytes(bits);
    }
    for (size_t i = 0; i < classes.size(); ++i) {
      Put<uint16_t>(layout_.Starts(part) + 2 * i, start);
      start += GroupBytes(classes[i]);
    }
    if (part == 0) base_classes_ = &classes;
  }

  void WritePageBytes(int part, uint32_t bytes) { Put(layout_.PageBytes(part), bytes); }

  // After the classes of the base.
  void WriteArrays() {
    std::memcpy(coder_ + layout_.Mu(), codec_.mu, layout_.Vector());
    std::memcpy(coder_ + layout_.Sd(), codec_.sd, layout_.Vector());
    WriteTables(0, codec_.base);
    WriteTables(1, codec_.refinement);
    WriteForward();
    WriteInverse();
  }

 private:
  void WriteTables(int part, const HeadCodec::Tables& tables) {
    std::byte* at = coder_ + layout_.Tables(part);
    std::memcpy(at + 4 * TableWord(4), tables.class4, 4 * kTableEntries);
    std::memcpy(at + 4 * TableWord(2), tables.class2, 4 * kTableEntries);
    std::memcpy(at + 4 * TableWord(1), tables.class1, 8 * kTableEntries);
    FillSearchTables(tables, reinterpret_cast<SearchTables*>(coder_ + layout_.Search(part)));
  }

  void WriteForward() {
    double largest_power = 0;
    for (int c = 0; c < d_; ++c) {
      double power = static_cast<double>(codec_.mu[c]) * codec_.mu[c];
      for (int i = 0; i < d_; ++i) power += std::pow(codec_.a_inv[c * d_ + i], 2);
      largest_power = std::max(largest_power, power);
    }
    const double row_scale = 1 / PowerOfTwo(std::sqrt(largest_power));
    Put<float>(layout_.RowScale(), row_scale);
    Put<float>(layout_.RowScale() + 4, 1 / row_scale);
    std::vector<double> component_scale(d_);
    for (int i = 0; i < d_; ++i) {
      double largest = 0, bias = 0;
      for (int c = 0; c < d_; ++c) {
        const double a = codec_.a[i * d_ + c];
        largest = std::max(largest, std::fabs(a));
        bias -= a * codec_.mu[c];
      }
      component_scale[i] = PowerOfTwo(largest) / kLargestElement;
      Put<float>(layout_.ComponentScale() + 4 * i, component_scale[i]);
      Put<float>(layout_.ComponentBias() + 4 * i, bias);
    }
    const int steps = layout_.Steps();
    for (int tile = 0; tile < steps * steps; ++tile) {
      WriteTile(layout_.Forward() + 1024 * tile, [&](int row, int column) {
        const int i = 16 * (tile / steps) + row, c = 16 * (tile % steps) + column;
        return codec_.a[i * d_ + c] / component_scale[i];
      });
    }
  }

  // A 16 x 16 tile as A fragments in two terms.
  template <typename Matrix>
  void WriteTile(int at, const Matrix& matrix) {
    for (int i = 0; i < 256; ++i) {
      const int e = i & 1, r = i >> 1 & 3, lane = i >> 3;
      const FragmentCell cell = FragmentCellOf(lane, r, e);
      PutTerms(at + 16 * lane + 4 * FragmentWord(!is_key_, r) + 2 * e, 512,
               matrix(cell.row, cell.column));
    }
  }

  void WriteInverse() {
    for (int i = 0; i < d_; ++i) {
      Put<float>(layout_.Feed() + 4 * i, (*base_classes_)[i / 8] == 8 ? kClass8InverseStep : 1.0f);
    }
    for (int c = 0; c < d_; ++c) {
      double largest = 0;
      for (int i = 0; i < d_; ++i) largest = std::max(largest, std::fabs(InverseElement(c, i)));
      const double scale = PowerOfTwo(largest);
      Put<float>(layout_.OutputScale() + 4 * c, scale);
      for (int i = 0; i < d_; ++i) PutInverse(c, i, InverseElement(c, i) / scale);
    }
  }

  double InverseElement(int channel, int component) const {
    const double a = codec_.a_inv[channel * d_ + component];
    return (*base_classes_)[component / 8] == 8 ? a / kClass8InverseStep : a;
  }

  // B fragments of mma.m16n8k16: register r of lane 4g + t holds components 2t, 2t + 1 of group
  // 2 step + r for column g.
  void PutInverse(int channel, int component, double value) {
    const int block = channel / 32, tile = channel % 8 / 2;
    const int column = channel % 32 / 8 * 2 + channel % 2;
    const int step = component / 16, r = component / 8 % 2, t = component % 8 / 2;
    const int lane = 4 * column + t, e = component % 2;
    const int chunk = ((block * layout_.Steps() + step) * 4 + tile / 2) * 32 + lane;
    PutTerms(layout_.Inverse() + 16 * chunk + 8 * (tile % 2) + 4 * r + 2 * e, 1024, value);
  }

  // FP16 value at `at`, what it leaves `distance` bytes on.
  void PutTerms(int at, int distance, double value) {
    const uint16_t high = FloatToHalf(static_cast<float>(value));
    Put<uint16_t>(at, high);
    Put<uint16_t>(at + distance, FloatToHalf(static_cast<float>(value - HalfToFloat(high))));
  }

  template <typename T>
  void Put(int at, T value) {
    std::memcpy(coder_ + at, &value, sizeof(value));
  }

  const CoderLayout layout_;
  const int d_;
  const bool is_key_;
  const HeadCodec& codec_;
  std::byte* const coder_;
  const std::vector<uint8_t>* base_classes_ = nullptr;
};

uint32_t PartBytes(const std::vector<uint8_t>& k, const std::vector<uint8_t>& v) {
  uint32_t bytes = 0;
  for (int bits : k) bytes += GroupBytes(bits);
  for (int bits : v) bytes += GroupBytes(bits);
  return bytes;
}

void WriteHead(const CodecSet& set, int layer, int head, std::byte* coders) {
  const CodecProfile& profile = set.profile(layer, head);
  for (int side = 0; side < 2; ++side) {
    const bool is_key = side == 0;
    CoderWriter writer(set.head_size(), is_key, is_key ? set.k(layer, head) : set.v(layer, head),
                       coders + side * CoderLayout{set.head_size()}.Bytes());
    writer.WriteClasses(0, is_key ? profile.k : profile.v, is_key ? nullptr : &profile.k);
    writer.WriteClasses(1, is_key ? profile.k_refinement : profile.v_refinement,
                        is_key ? nullptr : &profile.k_refinement);
    writer.WritePageBytes(0, PartBytes(profile.k, profile.v));
    writer.WritePageBytes(1, PartBytes(profile.k_refinement, profile.v_refinement));
    writer.WriteArrays();
  }
}

}  // namespace

std::vector<std::byte> PackCoders(const CodecSet& set) {
  const size_t head_bytes = 2 * CoderLayout{set.head_size()}.Bytes();
  std::vector<std::byte> coders(head_bytes * set.layers() * set.kv_heads());
  for (int i = 0; i < set.layers() * set.kv_heads(); ++i) {
    WriteHead(set, i / set.kv_heads(), i % set.kv_heads(), coders.data() + i * head_bytes);
  }
  return coders;
}

absl::StatusOr<CoderTables> CoderTables::Create(const CodecSet& set, bool with_lists) {
  const std::vector<std::byte> packed = PackCoders(set);
  FQ_ASSIGN_OR_RETURN(DeviceBuffer coders, DeviceBuffer::CopyOf(packed.data(), packed.size()));
  DeviceBuffer lists;
  if (with_lists) {
    const int count = 2 * set.layers() * set.kv_heads();
    FQ_ASSIGN_OR_RETURN(lists,
                        DeviceBuffer::Allocate(static_cast<size_t>(2) * count * ListBytes()));
    FQ_RETURN_IF_ERROR(MakeCandidateLists(coders.as<const std::byte>(), count, set.head_size(),
                                          lists.as<std::byte>(), nullptr));
    FQ_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr));
  }
  return CoderTables(set.head_size(), std::move(coders), std::move(lists));
}

}  // namespace fq

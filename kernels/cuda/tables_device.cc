#include "kernels/cuda/tables_device.h"

#include <cstdint>
#include <cstring>

#include "kernels/codec/float_convert.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"

namespace fq {
namespace {

// Fills the record of one (layer, head).
class RecordWriter {
 public:
  RecordWriter(TablesLayout layout, std::byte* record) : layout_(layout), record_(record) {}

  void WriteSide(const HeadCodec& codec, int kv) {
    const int d = layout_.head_size;
    WriteLookups(codec.base, kv, 0);
    WriteLookups(codec.refinement, kv, 1);
    std::memcpy(record_ + layout_.Mu(kv), codec.mu, 4 * d);
    std::memcpy(record_ + layout_.Sd(kv), codec.sd, 4 * d);
    std::memcpy(record_ + layout_.A(kv), codec.a, 4 * d * d);
    std::memcpy(record_ + layout_.AInverse(kv), codec.a_inv, 4 * d * d);
    if (kv == 0) {
      const auto matrix = [&](int row, int column) {
        return Clamp(codec.a_inv[column * d + row], kInputLimit);
      };
      WriteFragments(layout_.QueryFragments(), d / 16, matrix);
      WriteFragments(layout_.QueryRemainder(), 1, [&](int row, int column) {
        const float element = matrix(row, column);
        return element - HalfToFloat(FloatToHalf(element));
      });
    } else {
      WriteFragments(layout_.OutputFragments(), d / 16, [&](int row, int column) {
        return Clamp(codec.a_inv[row * d + column], kInputLimit);
      });
    }
  }

  void WriteClasses(const std::vector<uint8_t>& classes, const float* sd, int kv, int part) {
    std::memcpy(record_ + layout_.Classes(kv, part), classes.data(), classes.size());
    for (int c = 0; c < layout_.head_size; ++c) {
      const bool is_class8 = classes[c / kGroupChannels] == 8;
      const float unit = is_class8 ? kClass8Step : 1.0f;
      Put(layout_.Unit(kv, part) + 4 * c, part == 0 ? unit : unit * sd[c]);
      if (kv == 0) Put(layout_.IsClass8(part) + 4 * c, is_class8 ? 1.0f : 0.0f);
    }
  }

 private:
  void WriteLookups(const HeadCodec::Tables& tables, int kv, int part) {
    const int at = layout_.Lookups(part);
    for (int entry = 0; entry < kTableEntries; ++entry) {
      const int row = 2 * entry + kv;
      Put(at + 4 * (kClass4Words + row), tables.class4[entry]);
      Put(at + 4 * (kClass2Words + row), tables.class2[entry]);
      Put(at + 4 * (kClass1Words + 2 * row), tables.class1[2 * entry]);
      Put(at + 4 * (kClass1Words + 2 * row + 1), tables.class1[2 * entry + 1]);
    }
  }

  // `rows` rows of tiles of matrix(row, column) in FP16, in the order in which lanes read them.
  template <typename Matrix>
  void WriteFragments(int at, int rows, const Matrix& matrix) {
    const int tiles = layout_.head_size / 16;
    for (int i = 0; i < rows * tiles * 32 * 8; ++i) {
      const int e = i & 1, r = i >> 1 & 3, lane = i >> 3 & 31, tile = i >> 8;
      const FragmentCell cell = FragmentCellOf(lane, r, e);
      const int row = 16 * (tile / tiles) + cell.row, column = 16 * (tile % tiles) + cell.column;
      Put(at + 2 * i, FloatToHalf(matrix(row, column)));
    }
  }

  template <typename T>
  void Put(int at, T value) {
    std::memcpy(record_ + at, &value, sizeof(value));
  }

  const TablesLayout layout_;
  std::byte* const record_;
};

}  // namespace

std::vector<std::byte> PackTables(const CodecSet& set) {
  const TablesLayout layout{set.head_size()};
  std::vector<std::byte> packed(static_cast<size_t>(set.layers()) * set.kv_heads() *
                                layout.Bytes());
  std::byte* record = packed.data();
  for (int layer = 0; layer < set.layers(); ++layer) {
    for (int head = 0; head < set.kv_heads(); ++head, record += layout.Bytes()) {
      RecordWriter writer(layout, record);
      const CodecProfile& profile = set.profile(layer, head);
      const HeadCodec &k = set.k(layer, head), &v = set.v(layer, head);
      writer.WriteSide(k, 0);
      writer.WriteSide(v, 1);
      writer.WriteClasses(profile.k, k.sd, 0, 0);
      writer.WriteClasses(profile.v, v.sd, 1, 0);
      writer.WriteClasses(profile.k_refinement, k.sd, 0, 1);
      writer.WriteClasses(profile.v_refinement, v.sd, 1, 1);
    }
  }
  return packed;
}

}  // namespace fq

#include "kernels/cpu/group_codes.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/codec/chain_word.h"
#include "kernels/codec/quantise.h"
#include "kernels/cpu/group_order.h"

namespace fq {
namespace {

constexpr std::array<float, 256> MakeClass8Values() {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) values[code] = Class8Value(static_cast<uint8_t>(code));
  return values;
}
constexpr std::array<float, 256> kClass8Values = MakeClass8Values();

const uint32_t* TableWords(const HeadCodec::Tables& tables, int bits) {
  return bits == 4 ? tables.class4 : bits == 2 ? tables.class2 : tables.class1;
}

// The search tables of a side, built when a group first needs its class.
class SearchTables {
 public:
  SearchTables(const Primitives& primitives, const HeadCodec::Tables& tables)
      : primitives_(primitives), tables_(tables) {}

  const SearchTable& Get(int bits) {
    const int slot = bits == 4 ? 0 : bits == 2 ? 1 : 2;
    if (!ready_[slot]) Build(bits, &search_[slot]);
    ready_[slot] = true;
    return search_[slot];
  }

 private:
  void Build(int bits, SearchTable* search) const {
    const uint32_t* words = TableWords(tables_, bits);
    const int values = ValuesPerByte(bits);
    uint16_t halves[8 * kTableEntries];
    for (int entry = 0; entry < kTableEntries; ++entry) {
      for (int i = 0; i < values; ++i) {
        halves[i * kTableEntries + entry] = EntryHalf(words + entry * WordsPerEntry(bits), bits, i);
      }
    }
    primitives_.widen_halves(halves, values * kTableEntries, search->value[0]);
    primitives_.prepare_search(values, search);
  }

  const Primitives& primitives_;
  const HeadCodec::Tables& tables_;
  bool ready_[3] = {};
  SearchTable search_[3];
};

void EncodeGroup(const Primitives& primitives, Side side, int bits, SearchTables* tables,
                 const float* u, uint8_t* codes) {
  const GroupOrder& order = kGroupOrder[static_cast<int>(side)];
  const int values = ValuesPerByte(bits), count = GroupBytes(bits);
  alignas(64) float in[kGroupValues];
  for (int b = 0; b < count; ++b) {
    for (int i = 0; i < values; ++i) in[i * count + b] = u[order[b * values + i]];
  }
  if (bits == 8) {
    primitives.quantise_class8(in, codes);
  } else {
    primitives.find_nearest(tables->Get(bits), values, count, in, codes);
  }
}

// Look-ups are scalar on purpose: gathers are no faster, and scattered stores put the tokens in
// order for free.
void LookUpPairs(const uint32_t* table, int bits, const PairOrder& order, const uint8_t* codes,
                 uint32_t* pairs) {
  const int count = GroupBytes(bits);
  if (bits == 4) {
    for (int b = 0; b < count; ++b) pairs[order[b]] = table[codes[b]];
  } else if (bits == 2) {
    for (int b = 0; b < count; ++b) {
      const uint32_t word = table[codes[b]];
      pairs[order[2 * b]] = ChainPair(word, 0);
      pairs[order[2 * b + 1]] = ChainPair(word, 1);
    }
  } else {
    for (int b = 0; b < count; ++b) {
      const uint32_t* words = table + 2 * codes[b];
      for (int i = 0; i < 4; ++i) pairs[order[4 * b + i]] = ChainPair(words[i >> 1], i & 1);
    }
  }
}

void DecodeClass8(Side side, const uint8_t* codes, float* v) {
  const GroupOrder& order = kGroupOrder[static_cast<int>(side)];
  for (int i = 0; i < kGroupValues; ++i) v[order[i]] = kClass8Values[codes[i]];
}

void DecodeTable(const Primitives& primitives, Side side, int bits, const uint32_t* table,
                 const uint8_t* codes, float* v) {
  alignas(64) uint32_t pairs[kGroupPairs];
  LookUpPairs(table, bits, kPairOrder[static_cast<int>(side)], codes, pairs);
  if (side == Side::kKey) {
    for (int t = 0; t < 4; ++t) {
      float* even = v + 2 * t * kPageTokens;
      primitives.widen_pairs(pairs + t * kPageTokens, even, even + kPageTokens);
    }
    return;
  }
  alignas(64) uint16_t halves[kGroupValues];
  std::memcpy(halves, pairs, sizeof(halves));
  primitives.widen_halves(halves, kGroupValues, v);
}

}  // namespace

GroupMask CodedGroups(const std::vector<uint8_t>& classes) {
  GroupMask mask = 0;
  for (size_t i = 0; i < classes.size(); ++i) mask |= static_cast<GroupMask>(classes[i] != 0) << i;
  return mask;
}

void EncodeGroups(const Primitives& primitives, const GroupPlan& plan, const float* u,
                  std::byte* codes) {
  SearchTables tables(primitives, *plan.tables);
  for (uint8_t bits : *plan.classes) {
    if (bits != 0) {
      EncodeGroup(primitives, plan.side, bits, &tables, u, reinterpret_cast<uint8_t*>(codes));
    }
    u += kGroupValues;
    codes += GroupBytes(bits);
  }
}

void DecodeGroups(const Primitives& primitives, const GroupPlan& plan, const std::byte* codes,
                  float* v) {
  for (uint8_t bits : *plan.classes) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(codes);
    if (bits == 0) {
      std::fill_n(v, kGroupValues, 0.0f);
    } else if (bits == 8) {
      DecodeClass8(plan.side, bytes, v);
    } else {
      DecodeTable(primitives, plan.side, bits, TableWords(*plan.tables, bits), bytes, v);
    }
    v += kGroupValues;
    codes += GroupBytes(bits);
  }
}

}  // namespace fq

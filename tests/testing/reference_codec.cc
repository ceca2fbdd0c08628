#include "tests/testing/reference_codec.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/codec/float_convert.h"

namespace fq {
namespace {

constexpr int kRows = 64;

template <typename T>
T ReadAt(const std::byte* bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes + offset, sizeof(value));
  return value;
}

// Fragment coordinates of FORMAT.md section 2.
struct Fragment {
  int lane, j, r, e;
};

Fragment FragmentOf(bool is_key, int token, int component) {
  const int j = token / 16, r = token % 16 / 8;
  if (is_key) return {4 * (token % 8) + component / 2, j, r, component % 2};
  return {4 * component + token % 8 / 2, j, r, token % 2};
}

float ChainValue(uint32_t word, int r, int e) {
  const uint32_t b0 = word & 255, b1 = word >> 8 & 255, b2 = word >> 16 & 255, b3 = word >> 24;
  const uint32_t half =
      r == 0 ? (e == 0 ? b1 << 8 | b0 : b3 << 8 | b2) : (e == 0 ? b0 << 8 : b2 << 8 | b1);
  return HalfToFloat(static_cast<uint16_t>(half));
}

// Value of one component of one token from the codes of a group of class `bits`.
float GroupValue(const std::byte* codes, int bits, const HeadCodec::Tables& tables,
                 const Fragment& f) {
  const auto byte = [&](int offset) { return static_cast<int>(codes[offset]); };
  switch (bits) {
    case 8:
      return static_cast<float>(byte(16 * f.lane + 4 * f.j + 2 * f.r + f.e) - 128) * (4.5f / 127);
    case 4: {
      const uint32_t entry = tables.class4[byte(8 * f.lane + 2 * f.j + f.r)];
      return HalfToFloat(static_cast<uint16_t>(f.e == 0 ? entry & 0xFFFF : entry >> 16));
    }
    case 2:
      return ChainValue(tables.class2[byte(4 * f.lane + f.j)], f.r, f.e);
    case 1:
      return ChainValue(tables.class1[2 * byte(2 * f.lane + f.j / 2) + f.j % 2], f.r, f.e);
    default:
      return 0.0f;
  }
}

size_t SumOf(const std::vector<uint8_t>& classes) {
  size_t sum = 0;
  for (uint8_t bits : classes) sum += bits;
  return sum;
}

// Values [64][d] of one side of fq codes.
void ReadCodes(const std::byte* codes, const std::vector<uint8_t>& classes,
               const HeadCodec::Tables& tables, bool is_key, float* values) {
  const int d = static_cast<int>(classes.size()) * 8;
  for (int group = 0; group < d / 8; ++group) {
    for (int t = 0; t < kRows; ++t) {
      for (int c = 0; c < 8; ++c) {
        values[t * d + 8 * group + c] =
            GroupValue(codes, classes[group], tables, FragmentOf(is_key, t, c));
      }
    }
    codes += 64 * classes[group];
  }
}

void ReadBaseSide(const ReferencePage& page, bool is_key, float* values) {
  const CodecProfile& profile = page.codec_set->profile(page.layer, page.head);
  const HeadCodec& codec =
      is_key ? page.codec_set->k(page.layer, page.head) : page.codec_set->v(page.layer, page.head);
  const size_t offset = is_key ? 0 : 64 * SumOf(profile.k);
  ReadCodes(page.primary + offset, is_key ? profile.k : profile.v, codec.base, is_key, values);
  if (page.refinement == nullptr) return;
  std::vector<float> refinement(kRows * page.head_size);
  const size_t refinement_offset = is_key ? 0 : 64 * SumOf(profile.k_refinement);
  ReadCodes(page.refinement + refinement_offset,
            is_key ? profile.k_refinement : profile.v_refinement, codec.refinement, is_key,
            refinement.data());
  for (int i = 0; i < kRows * page.head_size; ++i) {
    values[i] = std::fmaf(codec.sd[i % page.head_size], refinement[i], values[i]);
  }
}

void ReadExactSide(const ReferencePage& page, bool is_key, float* values) {
  const int count = kRows * page.head_size;
  const size_t bytes = ElementBytes(page.dtype);
  const std::byte* from = page.primary + (is_key ? 0 : count * bytes);
  for (int i = 0; i < count; ++i) {
    if (page.dtype == DType::kF32) {
      values[i] = ReadAt<float>(from, i * bytes);
    } else {
      const uint16_t bits = ReadAt<uint16_t>(from, i * bytes);
      values[i] = page.dtype == DType::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
    }
  }
}

void ReadUniversalSide(const ReferencePage& page, bool is_key, float* values) {
  static constexpr float kLevels[8] = {0.1284f, 0.3881f, 0.6568f, 0.9424f,
                                       1.2562f, 1.6181f, 2.0690f, 2.7326f};
  const int d = page.head_size;
  const std::byte* codes = page.primary + (is_key ? 0 : 32 * d);
  for (int i = 0; i < kRows * d; ++i) {
    const int token = i / d, channel = i % d;
    const Fragment f = FragmentOf(is_key, token, channel % 8);
    const int byte = static_cast<int>(codes[256 * (channel / 8) + 8 * f.lane + 2 * f.j + f.r]);
    const int code = f.e == 0 ? byte & 15 : byte >> 4;
    values[i] = code < 8 ? -kLevels[7 - code] : kLevels[code - 8];
  }
}

// row = H row, blockwise; H[i][j] = (-1)^popcount(i & j) / sqrt(block).
void HadamardRow(int d, double* row) {
  const int block = d == 96 ? 32 : d;
  std::vector<double> in(row, row + d);
  for (int i = 0; i < d; ++i) {
    row[i] = 0;
    for (int j = 0; j < block; ++j) {
      const int sign = __builtin_popcount(i % block & j) % 2 == 0 ? 1 : -1;
      row[i] += sign * in[i / block * block + j] / std::sqrt(static_cast<double>(block));
    }
  }
}

void InverseSide(const ReferencePage& page, bool is_key, double* rows) {
  const int d = page.head_size;
  for (int t = 0; t < kRows; ++t) {
    double* row = rows + t * d;
    if (page.kind == PageKind::kUniversal) {
      HadamardRow(d, row);
      const size_t norms = 64 * d + (is_key ? 0 : 128);
      const double norm = HalfToFloat(ReadAt<uint16_t>(page.primary, norms + 2 * t));
      for (int c = 0; c < d; ++c) row[c] *= norm;
    } else if (page.kind == PageKind::kBase) {
      const HeadCodec& codec = is_key ? page.codec_set->k(page.layer, page.head)
                                      : page.codec_set->v(page.layer, page.head);
      const std::vector<double> v(row, row + d);
      for (int i = 0; i < d; ++i) {
        row[i] = codec.mu[i];
        for (int c = 0; c < d; ++c) row[i] += static_cast<double>(codec.a_inv[i * d + c]) * v[c];
      }
    }
  }
}

void ReadSinkRows(const ReferencePage& page, bool is_key, double* rows) {
  const int d = page.head_size;
  size_t offset = 64 * d + 256;
  if (page.kind == PageKind::kBase) {
    const CodecProfile& profile = page.codec_set->profile(page.layer, page.head);
    offset = 64 * (SumOf(profile.k) + SumOf(profile.v));
  }
  const std::byte* record = page.primary + offset;
  for (int t = 0; t < 16; ++t) {
    const double scale = ReadAt<float>(record, 32 * d + (is_key ? 0 : 64) + 4 * t);
    for (int c = 0; c < d; ++c) {
      rows[t * d + c] = scale * ReadAt<int8_t>(record, (is_key ? 0 : 16 * d) + t * d + c);
    }
  }
}

}  // namespace

std::vector<float> ReferenceCoded(const ReferencePage& page) {
  const int side = kRows * page.head_size;
  std::vector<float> values(2 * side);
  for (bool is_key : {true, false}) {
    float* to = values.data() + (is_key ? 0 : side);
    if (page.kind == PageKind::kExact) {
      ReadExactSide(page, is_key, to);
    } else if (page.kind == PageKind::kUniversal) {
      ReadUniversalSide(page, is_key, to);
    } else {
      ReadBaseSide(page, is_key, to);
    }
  }
  return values;
}

std::vector<double> ReferenceRows(const ReferencePage& page) {
  const std::vector<float> coded = ReferenceCoded(page);
  std::vector<double> rows(coded.begin(), coded.end());
  const int side = kRows * page.head_size;
  for (bool is_key : {true, false}) {
    double* to = rows.data() + (is_key ? 0 : side);
    InverseSide(page, is_key, to);
    if (page.sink && page.kind != PageKind::kExact) ReadSinkRows(page, is_key, to);
  }
  return rows;
}

PageError ReferenceError(const ReferencePage& page, const std::vector<double>& rows, int tokens) {
  const int d = page.head_size;
  const std::vector<float> v = ReferenceCoded(page);
  PageError sums;
  for (int i = 0; i < 2 * kRows; ++i) {
    const int side = i / kRows, t = i % kRows;
    if (t >= tokens || (page.sink && t < 16)) continue;
    const HeadCodec& codec = side == 0 ? page.codec_set->k(page.layer, page.head)
                                       : page.codec_set->v(page.layer, page.head);
    for (int c = 0; c < d; ++c) {
      double u = 0;
      for (int k = 0; k < d; ++k) u += codec.a[c * d + k] * (rows[i * d + k] - codec.mu[k]);
      sums.error[side] += codec.weight[c] * (u - v[i * d + c]) * (u - v[i * d + c]);
      sums.energy[side] += codec.weight[c] * u * u;
    }
  }
  return sums;
}

AttendedRow AttendReference(const std::vector<double>& k, const std::vector<double>& v,
                            int head_size, const float* q, double scale) {
  const size_t tokens = k.size() / head_size;
  std::vector<double> scores(tokens);
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t t = 0; t < tokens; ++t) {
    for (int c = 0; c < head_size; ++c) scores[t] += scale * q[c] * k[t * head_size + c];
    max = std::max(max, scores[t]);
  }
  for (double score : scores) sum += std::exp(score - max);
  AttendedRow row{std::vector<double>(head_size), max + std::log(sum)};
  for (size_t t = 0; t < tokens; ++t) {
    const double weight = std::exp(scores[t] - row.lse);
    for (int c = 0; c < head_size; ++c) row.out[c] += weight * v[t * head_size + c];
  }
  return row;
}

}  // namespace fq

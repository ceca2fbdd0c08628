#include "tests/testing/codec_set_builder.h"

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/codec/float_convert.h"
#include "nlohmann/json.hpp"
#include "openssl/evp.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

using Json = nlohmann::json;

constexpr int kProfiles = 4;
constexpr size_t kAlignment = 64;

// Classes in falling order: profile 0 and 1 have every class, the others few.
std::vector<int> BaseClasses(int groups, int profile, bool is_key) {
  static constexpr int kPatterns[kProfiles][2][8] = {
      {{8, 4, 2, 2, 1, 0, 0, 0}, {4, 4, 4, 2, 2, 1, 0, 0}},
      {{8, 8, 4, 4, 2, 1, 1, 0}, {8, 4, 2, 1, 1, 0, 0, 0}},
      {{4, 4, 2, 2, 1, 1, 0, 0}, {2, 2, 2, 2, 2, 2, 2, 2}},
      {{2, 1, 0, 0, 0, 0, 0, 0}, {8, 8, 4, 4, 4, 2, 2, 1}}};
  std::vector<int> classes;
  for (int i = 0; i < groups; ++i)
    classes.push_back(kPatterns[profile][is_key ? 0 : 1][i * 8 / groups]);
  return classes;
}

std::vector<int> RefinementClasses(const std::vector<int>& base, int profile) {
  std::vector<int> classes;
  for (int bits : base) {
    const int wanted = bits == 8 ? (profile == 1 ? 1 : 0) : bits == 0 ? 1 : bits == 1 ? 4 : 2;
    classes.push_back(profile == 2 && bits == 4 ? 8 : wanted);
  }
  return classes;
}

Json MakeLoss(double bits_per_value) {
  return {{"perplexity_excess_percent", 0.5},
          {"standard_error_percent", 0.1},
          {"kl_divergence", 0.01},
          {"top1_agreement_percent", 97.0},
          {"bits_per_value", bits_per_value},
          {"tokens", 4096},
          {"text", "synthetic"}};
}

Json MakeJson(int layers, int kv_heads, int head_size, uint64_t seed) {
  Json profiles = Json::array();
  for (int i = 0; i < kProfiles; ++i) {
    const std::vector<int> k = BaseClasses(head_size / 8, i, true);
    const std::vector<int> v = BaseClasses(head_size / 8, i, false);
    profiles.push_back({{"k", k},
                        {"v", v},
                        {"k_refinement", RefinementClasses(k, i)},
                        {"v_refinement", RefinementClasses(v, i)}});
  }
  Json profile_of = Json::array();
  for (int layer = 0; layer < layers; ++layer) {
    Json row = Json::array();
    for (int head = 0; head < kv_heads; ++head)
      row.push_back((layer * kv_heads + head) % kProfiles);
    profile_of.push_back(row);
  }
  return {{"model", "synthetic"},
          {"layers", layers},
          {"kv_heads", kv_heads},
          {"head_size", head_size},
          {"calibrated_tokens", 2048},
          {"profiles", profiles},
          {"profile_of", profile_of},
          {"loss", {{"compact", MakeLoss(2.1)}, {"near-lossless", MakeLoss(4.1)}}},
          {"created_by", "tests/testing/codec_set_builder.cc"},
          {"seed", seed}};
}

// Appends the arrays of one (layer, head, K|V).
class SideWriter {
 public:
  SideWriter(int head_size, uint64_t seed, std::vector<std::byte>* file)
      : d_(head_size), random_(seed), file_(file) {}

  void Write() {
    for (int i = 0; i < d_; ++i) Put(static_cast<float>(random_.Gaussian()));  // mu
    WriteTransforms();
    for (int i = 0; i < d_; ++i) Put(static_cast<float>(Weight(i)));
    for (int i = 0; i < d_; ++i) Put(static_cast<float>(0.25 + 0.5 * i / d_));  // sd
    for (int part = 0; part < 2; ++part) WriteTables();
  }

 private:
  // Weights fall by 30 dB over the components, as measured spectra do.
  double Weight(int i) const {
    return 1.0 / (1.0 + 1000.0 * i * i / (static_cast<double>(d_) * d_));
  }

  // A = diag(s) Q^T and Ai = Q diag(1/s) with Q a product of three reflections.
  void WriteTransforms() {
    std::vector<double> q(d_ * d_, 0.0);
    for (int i = 0; i < d_; ++i) q[i * d_ + i] = 1.0;
    for (int i = 0; i < 3; ++i) Reflect(&q);
    std::vector<double> spread(d_);
    for (double& s : spread) s = 0.5 + 0.25 * (random_.Uniform() + 1.0);
    for (int i = 0; i < d_; ++i) {
      for (int k = 0; k < d_; ++k) Put(static_cast<float>(spread[i] * q[k * d_ + i]));
    }
    for (int k = 0; k < d_; ++k) {
      for (int i = 0; i < d_; ++i) Put(static_cast<float>(q[k * d_ + i] / spread[i]));
    }
  }

  // q -= 2 q w w^T / |w|^2
  void Reflect(std::vector<double>* q) {
    std::vector<double> w(d_);
    double norm = 0;
    for (double& value : w) {
      value = random_.Gaussian();
      norm += value * value;
    }
    for (int row = 0; row < d_; ++row) {
      double* values = q->data() + row * d_;
      double dot = 0;
      for (int i = 0; i < d_; ++i) dot += values[i] * w[i];
      for (int i = 0; i < d_; ++i) values[i] -= 2 * dot / norm * w[i];
    }
  }

  void WriteTables() {
    for (int i = 0; i < 256; ++i) Put(Half() | static_cast<uint32_t>(Half()) << 16);
    for (int i = 0; i < 3 * 256; ++i) Put(ChainWord());
  }

  uint16_t Half() { return FloatToHalf(static_cast<float>(random_.Gaussian())); }

  // Four Gaussian e5m2 bytes: whatever lies below the upper byte of an FP16 keeps it finite.
  uint32_t ChainWord() {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word = word << 8 | Half() >> 8;
    return word;
  }

  template <typename T>
  void Put(T value) {
    static_assert(sizeof(T) == 4);
    const size_t size = file_->size();
    file_->resize(size + sizeof(value));
    std::memcpy(file_->data() + size, &value, sizeof(value));
  }

  const int d_;
  Random random_;
  std::vector<std::byte>* file_;
};

// Header and JSON text, padded; the arrays follow.
std::vector<std::byte> HeadOfFile(const std::string& json) {
  std::vector<std::byte> file(64 + (json.size() + kAlignment - 1) / kAlignment * kAlignment);
  const uint32_t version = 1;
  const uint64_t json_bytes = json.size();
  std::memcpy(file.data(), "FQCS", 4);
  std::memcpy(file.data() + 4, &version, sizeof(version));
  std::memcpy(file.data() + 16, &json_bytes, sizeof(json_bytes));
  std::memcpy(file.data() + 64, json.data(), json.size());
  return file;
}

}  // namespace

std::vector<std::byte> BuildCodecSet(int layers, int kv_heads, int head_size, uint64_t seed) {
  std::vector<std::byte> file = HeadOfFile(MakeJson(layers, kv_heads, head_size, seed).dump());
  for (int side = 0; side < 2 * layers * kv_heads; ++side) {
    SideWriter(head_size, seed * 1000003 + side, &file).Write();
  }
  SealCodecSet(&file);
  return file;
}

std::vector<std::byte> PatchCodecSet(const std::vector<std::byte>& file, const std::string& patch) {
  uint64_t json_bytes = 0;
  std::memcpy(&json_bytes, file.data() + 16, sizeof(json_bytes));
  const char* text = reinterpret_cast<const char*>(file.data()) + 64;
  Json json = Json::parse(text, text + json_bytes);
  json.merge_patch(Json::parse(patch));
  std::vector<std::byte> patched = HeadOfFile(json.dump());
  const size_t arrays = 64 + (json_bytes + kAlignment - 1) / kAlignment * kAlignment;
  patched.insert(patched.end(), file.begin() + static_cast<std::ptrdiff_t>(arrays), file.end());
  SealCodecSet(&patched);
  return patched;
}

std::vector<std::byte> WithOneClass(const std::vector<std::byte>& file, const CodecSet& set,
                                    int bits) {
  const std::vector<int> base(set.head_size() / 8, bits), refinement(set.head_size() / 8, 2);
  const Json profile = {
      {"k", base}, {"v", base}, {"k_refinement", refinement}, {"v_refinement", refinement}};
  const std::vector<std::vector<int>> of(set.layers(), std::vector<int>(set.kv_heads(), 0));
  return PatchCodecSet(file, Json({{"profiles", {profile}}, {"profile_of", of}}).dump());
}

void SealCodecSet(std::vector<std::byte>* file) {
  const uint64_t length = file->size();
  std::memcpy(file->data() + 8, &length, sizeof(length));
  EVP_Digest(file->data() + 64, file->size() - 64,
             reinterpret_cast<unsigned char*>(file->data() + 24), nullptr, EVP_sha256(), nullptr);
}

void MakeRow(const HeadCodec& codec, int head_size, uint64_t seed, float* row) {
  Random random(seed);
  std::vector<float> u(head_size);
  for (float& value : u) value = static_cast<float>(random.Gaussian());
  for (int i = 0; i < head_size; ++i) {
    float sum = codec.mu[i];
    for (int c = 0; c < head_size; ++c) sum += codec.a_inv[i * head_size + c] * u[c];
    row[i] = sum;
  }
}

}  // namespace fq

// The codec set of a model: transforms, class allocation and codebooks of every (layer, head)
// (FORMAT.md section 7).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace fq {

using CodecSetId = std::array<uint8_t, 32>;  // SHA-256, FORMAT.md section 7

// Classes in bits of each channel group, [head_size / 8] each.
struct CodecProfile {
  std::vector<uint8_t> k, v, k_refinement, v_refinement;
};

// Everything of one (layer, head, K|V). Pointers live as long as the CodecSet.
struct HeadCodec {
  const float* mu;      // [d]
  const float* a;       // [d][d], row = component
  const float* a_inv;   // [d][d], row = channel
  const float* weight;  // [d]
  const float* sd;      // [d]
  struct Tables {
    const uint32_t* class4;  // [256] two FP16
    const uint32_t* class2;  // [256] chain word
    const uint32_t* class1;  // [256][2] chain words
  } base, refinement;
};

// Measured loss of one profile, as the file states it.
struct MeasuredLoss {
  double perplexity_excess_percent = 0, standard_error_percent = 0, kl_divergence = 0,
         top1_agreement_percent = 0, bits_per_value = 0;
  int64_t tokens = 0;  // of one measured document
  std::string text;    // what it was measured on
};

// The same at another length than that of `loss`.
struct LossAtLength {
  std::string profile;  // "compact" or "near-lossless"
  MeasuredLoss loss;
};

// Relative weighted error that a profile makes on rows its tables were not fitted to, [layers]
// [kv_heads][2] (K, V), all >= 0. Both lists are empty where the file has no expectation.
struct ExpectedError {
  std::vector<double> compact, near_lossless;
};

// Immutable after Load; all methods may be called from any thread.
class CodecSet {
 public:
  // InvalidArgument says which field does not fit and both values; NotFound when the file cannot be
  // opened.
  static absl::StatusOr<std::shared_ptr<const CodecSet>> Load(const std::string& path);
  static absl::StatusOr<std::shared_ptr<const CodecSet>> Parse(std::vector<std::byte> bytes);

  const CodecSetId& id() const { return id_; }
  const std::string& model() const { return model_; }
  int layers() const { return layers_; }
  int kv_heads() const { return kv_heads_; }
  int head_size() const { return head_size_; }
  int calibrated_tokens() const { return calibrated_tokens_; }
  const MeasuredLoss& compact_loss() const { return compact_loss_; }
  const MeasuredLoss& near_lossless_loss() const { return near_lossless_loss_; }
  const std::vector<LossAtLength>& loss_by_length() const { return loss_by_length_; }
  const ExpectedError& expected_error() const { return expected_error_; }
  const CodecProfile& profile(int layer, int head) const;
  const HeadCodec& k(int layer, int head) const;
  const HeadCodec& v(int layer, int head) const;

 private:
  CodecSet() = default;
  friend class CodecSetParser;

  std::vector<std::byte> bytes_;
  CodecSetId id_{};
  std::string model_;
  int layers_ = 0, kv_heads_ = 0, head_size_ = 0, calibrated_tokens_ = 0;
  MeasuredLoss compact_loss_, near_lossless_loss_;
  std::vector<LossAtLength> loss_by_length_;
  ExpectedError expected_error_;
  std::vector<CodecProfile> profiles_;
  std::vector<int> profile_of_;   // [layers * kv_heads]
  std::vector<HeadCodec> heads_;  // [layers * kv_heads * 2], K then V
};

}  // namespace fq

#include "kernels/codec_set.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/chain_word.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec_set_json.h"
#include "kernels/codec_set_loss.h"
#include "nlohmann/json.hpp"
#include "openssl/evp.h"

namespace fq {
namespace {

constexpr size_t kHeaderBytes = 64;
constexpr size_t kAlignment = 64;
constexpr uint32_t kVersion = 1;
constexpr int64_t kMaxLayers = 65535, kMaxKvHeads = 65535;
constexpr size_t kMaxProfiles = 32;
constexpr std::streamoff kMaxFileBytes = std::streamoff{1} << 36;
constexpr size_t kTableWords = (1 + 1 + 2) * kTableEntries;  // classes 4, 2, 1 of one part

// 4-byte words of one (layer, head, K|V).
size_t WordsPerSide(size_t head_size) {
  return 3 * head_size + 2 * head_size * head_size + 2 * kTableWords;
}

template <typename T>
T ReadAt(const std::vector<std::byte>& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

absl::StatusOr<std::vector<uint8_t>> FindClasses(const Json& profile, const char* key,
                                                 int head_size) {
  FQ_ASSIGN_OR_RETURN(const Json* list, FindArray(profile, key));
  const size_t groups = head_size / kGroupChannels;
  if (list->size() != groups) {
    return Invalid(key, absl::StrCat(list->size(), " classes"), absl::StrCat(groups));
  }
  std::vector<uint8_t> classes;
  for (const Json& item : *list) {
    const bool valid = item.is_number_unsigned() && item.get<uint64_t>() <= 8 &&
                       IsClass(static_cast<int>(item.get<uint64_t>()));
    if (!valid)
      return Invalid(key, item.dump(-1, ' ', false, Json::error_handler_t::replace),
                     "a class in {8, 4, 2, 1, 0}");
    classes.push_back(item.get<uint8_t>());
  }
  return classes;
}

// Whether all four halves of a chain word are finite FP16.
bool ChainIsFinite(uint32_t word) {
  for (int value = 0; value < 4; ++value) {
    if ((EntryHalf(&word, 2, value) & 0x7C00u) == 0x7C00u) return false;
  }
  return true;
}

bool PairIsFinite(uint32_t word) {
  return (word & 0x7C00u) != 0x7C00u && (word & 0x7C000000u) != 0x7C000000u;
}

bool TablesAreFinite(const HeadCodec::Tables& tables) {
  for (int i = 0; i < kTableEntries; ++i) {
    if (!PairIsFinite(tables.class4[i]) || !ChainIsFinite(tables.class2[i]) ||
        !ChainIsFinite(tables.class1[2 * i]) || !ChainIsFinite(tables.class1[2 * i + 1])) {
      return false;
    }
  }
  return true;
}

bool FloatsAreFinite(const float* values, size_t count) {
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    found |= static_cast<uint32_t>((FloatBits(values[i]) & 0x7F800000u) == 0x7F800000u);
  }
  return found == 0;
}

// Points into the words of one (layer, head, K|V), in the order of FORMAT.md section 7.
HeadCodec ViewSide(const std::byte* words, size_t head_size) {
  const float* floats = reinterpret_cast<const float*>(words);
  HeadCodec codec{};
  codec.mu = floats;
  codec.a = codec.mu + head_size;
  codec.a_inv = codec.a + head_size * head_size;
  codec.weight = codec.a_inv + head_size * head_size;
  codec.sd = codec.weight + head_size;
  const uint32_t* table = reinterpret_cast<const uint32_t*>(codec.sd + head_size);
  for (HeadCodec::Tables* tables : {&codec.base, &codec.refinement}) {
    tables->class4 = table;
    tables->class2 = table + kTableEntries;
    tables->class1 = table + 2 * kTableEntries;
    table += kTableWords;
  }
  return codec;
}

}  // namespace

// Fills a CodecSet in the order of the file; every step checks what it reads.
class CodecSetParser {
 public:
  explicit CodecSetParser(std::vector<std::byte> bytes) : set_(new CodecSet()) {
    set_->bytes_ = std::move(bytes);
  }

  absl::StatusOr<std::shared_ptr<const CodecSet>> Parse() {
    FQ_RETURN_IF_ERROR(ReadHeader());
    FQ_RETURN_IF_ERROR(CheckDigest());
    const char* text = reinterpret_cast<const char*>(set_->bytes_.data() + kHeaderBytes);
    const Json root = Json::parse(text, text + json_bytes_, nullptr, /*allow_exceptions=*/false);
    if (root.is_discarded()) return Invalid("JSON", "not parseable", "JSON text");
    FQ_RETURN_IF_ERROR(ReadShape(root));
    FQ_RETURN_IF_ERROR(ReadProfiles(root));
    FQ_RETURN_IF_ERROR(ReadProfileOf(root));
    FQ_RETURN_IF_ERROR(ReadProvenance(root));
    FQ_RETURN_IF_ERROR(ReadArrays());
    return std::move(set_);
  }

 private:
  absl::Status ReadHeader() {
    const std::vector<std::byte>& bytes = set_->bytes_;
    if (bytes.size() < kHeaderBytes) {
      return Invalid("file", absl::StrCat(bytes.size(), " bytes"), "at least 64");
    }
    if (std::memcmp(bytes.data(), "FQCS", 4) != 0) {
      const absl::string_view magic(reinterpret_cast<const char*>(bytes.data()), 4);
      return Invalid("magic", absl::CEscape(magic), "FQCS");
    }
    const uint32_t version = ReadAt<uint32_t>(bytes, 4);
    if (version != kVersion)
      return Invalid("version", absl::StrCat(version), absl::StrCat(kVersion));
    const uint64_t length = ReadAt<uint64_t>(bytes, 8), reserved = ReadAt<uint64_t>(bytes, 56);
    if (length != bytes.size()) {
      return Invalid("length", absl::StrCat(length), absl::StrCat(bytes.size(), " as read"));
    }
    if (reserved != 0) return Invalid("reserved field", absl::StrCat(reserved), "0");
    json_bytes_ = ReadAt<uint64_t>(bytes, 16);
    if (json_bytes_ > bytes.size() - kHeaderBytes) {
      return Invalid("JSON length", absl::StrCat(json_bytes_),
                     absl::StrCat("at most ", bytes.size() - kHeaderBytes));
    }
    return absl::OkStatus();
  }

  absl::Status CheckDigest() {
    const std::vector<std::byte>& bytes = set_->bytes_;
    std::memcpy(set_->id_.data(), bytes.data() + 24, set_->id_.size());
    CodecSetId digest{};
    EVP_Digest(bytes.data() + kHeaderBytes, bytes.size() - kHeaderBytes, digest.data(), nullptr,
               EVP_sha256(), nullptr);
    if (digest == set_->id_) return absl::OkStatus();
    const auto hex = [](const CodecSetId& id) {
      return absl::BytesToHexString({reinterpret_cast<const char*>(id.data()), id.size()});
    };
    return Invalid("SHA-256", hex(set_->id_), absl::StrCat(hex(digest), " as computed"));
  }

  absl::Status ReadShape(const Json& root) {
    FQ_ASSIGN_OR_RETURN(set_->model_, FindString(root, "model"));
    FQ_ASSIGN_OR_RETURN(set_->layers_, FindInt(root, "layers", kMaxLayers));
    FQ_ASSIGN_OR_RETURN(set_->kv_heads_, FindInt(root, "kv_heads", kMaxKvHeads));
    FQ_ASSIGN_OR_RETURN(set_->head_size_, FindInt(root, "head_size", kMaxHeadSize));
    FQ_ASSIGN_OR_RETURN(set_->calibrated_tokens_, FindInt(root, "calibrated_tokens", INT32_MAX));
    if (!IsHeadSize(set_->head_size_)) {
      return Invalid("head_size", absl::StrCat(set_->head_size_), "64, 96, 128 or 256");
    }
    return absl::OkStatus();
  }

  absl::Status ReadProfiles(const Json& root) {
    FQ_ASSIGN_OR_RETURN(const Json* list, FindArray(root, "profiles"));
    if (list->empty() || list->size() > kMaxProfiles) {
      return Invalid("profiles", absl::StrCat(list->size(), " profiles"), "1..32");
    }
    for (const Json& item : *list) {
      CodecProfile profile;
      FQ_ASSIGN_OR_RETURN(profile.k, FindClasses(item, "k", set_->head_size_));
      FQ_ASSIGN_OR_RETURN(profile.v, FindClasses(item, "v", set_->head_size_));
      FQ_ASSIGN_OR_RETURN(profile.k_refinement,
                          FindClasses(item, "k_refinement", set_->head_size_));
      FQ_ASSIGN_OR_RETURN(profile.v_refinement,
                          FindClasses(item, "v_refinement", set_->head_size_));
      set_->profiles_.push_back(std::move(profile));
    }
    return absl::OkStatus();
  }

  absl::Status ReadProfileOf(const Json& root) {
    FQ_ASSIGN_OR_RETURN(const Json* layers, FindArray(root, "profile_of"));
    if (layers->size() != static_cast<size_t>(set_->layers_)) {
      return Invalid("profile_of", absl::StrCat(layers->size(), " layers"),
                     absl::StrCat(set_->layers_));
    }
    for (const Json& heads : *layers) {
      if (!heads.is_array() || heads.size() != static_cast<size_t>(set_->kv_heads_)) {
        return Invalid("profile_of", absl::StrCat("a layer of ", heads.size()),
                       absl::StrCat("an array of ", set_->kv_heads_, " heads"));
      }
      for (const Json& index : heads) {
        if (!index.is_number_unsigned() || index.get<uint64_t>() >= set_->profiles_.size()) {
          return Invalid("profile_of", "an index out of range",
                         absl::StrCat("below ", set_->profiles_.size()));
        }
        set_->profile_of_.push_back(index.get<int>());
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadProvenance(const Json& root) {
    FQ_ASSIGN_OR_RETURN(set_->compact_loss_, FindLoss(root, "compact"));
    FQ_ASSIGN_OR_RETURN(set_->near_lossless_loss_, FindLoss(root, "near-lossless"));
    FQ_ASSIGN_OR_RETURN(set_->loss_by_length_, FindLossByLength(root));
    FQ_ASSIGN_OR_RETURN(set_->expected_error_,
                        FindExpectedError(root, set_->layers_, set_->kv_heads_));
    FQ_RETURN_IF_ERROR(FindString(root, "created_by").status());
    return Find(root, "seed").status();
  }

  absl::Status ReadArrays() {
    const std::vector<std::byte>& bytes = set_->bytes_;
    const size_t begin = (kHeaderBytes + json_bytes_ + kAlignment - 1) / kAlignment * kAlignment;
    const size_t head_size = set_->head_size_;
    const size_t side_bytes = sizeof(float) * WordsPerSide(head_size);
    const size_t sides = 2 * static_cast<size_t>(set_->layers_) * set_->kv_heads_;
    if (begin + sides * side_bytes != bytes.size()) {
      return Invalid("length", absl::StrCat(bytes.size()),
                     absl::StrCat(begin + sides * side_bytes, " for its shape"));
    }
    for (size_t i = 0; i < sides; ++i) {
      const HeadCodec side = ViewSide(bytes.data() + begin + i * side_bytes, head_size);
      const size_t floats = 3 * head_size + 2 * head_size * head_size;
      if (!FloatsAreFinite(side.mu, floats) || !TablesAreFinite(side.base) ||
          !TablesAreFinite(side.refinement)) {
        return Invalid(absl::StrCat("an array of ", i % 2 == 0 ? "K" : "V", " of layer ",
                                    i / 2 / set_->kv_heads_, ", head ", i / 2 % set_->kv_heads_),
                       "not finite", "finite");
      }
      set_->heads_.push_back(side);
    }
    return absl::OkStatus();
  }

  std::shared_ptr<CodecSet> set_;  // handed out when whole
  size_t json_bytes_ = 0;
};

absl::StatusOr<std::shared_ptr<const CodecSet>> CodecSet::Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file)
    return absl::NotFoundError(absl::StrCat("codec set: cannot open ", path, ": ",
                                            std::generic_category().message(errno)));
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxFileBytes) {  // a directory opens, and has no size
    return absl::NotFoundError(absl::StrCat("codec set: ", path, " is no regular file"));
  }
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  file.seekg(0);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), size)) {
    return absl::NotFoundError(
        absl::StrCat("codec set: read ", file.gcount(), " of ", size, " bytes of ", path));
  }
  absl::StatusOr<std::shared_ptr<const CodecSet>> set = Parse(std::move(bytes));
  if (set.ok()) return set;
  return absl::Status(set.status().code(), absl::StrCat(path, ": ", set.status().message()));
}

absl::StatusOr<std::shared_ptr<const CodecSet>> CodecSet::Parse(std::vector<std::byte> bytes) {
  return CodecSetParser(std::move(bytes)).Parse();
}

const CodecProfile& CodecSet::profile(int layer, int head) const {
  return profiles_[profile_of_[layer * kv_heads_ + head]];
}

const HeadCodec& CodecSet::k(int layer, int head) const {
  return heads_[2 * (layer * kv_heads_ + head)];
}

const HeadCodec& CodecSet::v(int layer, int head) const {
  return heads_[2 * (layer * kv_heads_ + head) + 1];
}

}  // namespace fq

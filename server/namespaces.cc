#include "server/namespaces.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "server/to_bytes.h"

namespace fq {
namespace {

SlabShape ShapeOf(const Descriptor& descriptor, const Range& range) {
  SlabShape shape;
  shape.layer_begin = static_cast<uint16_t>(range.layer_begin);
  shape.layer_end = static_cast<uint16_t>(range.layer_end);
  shape.head_begin = static_cast<uint16_t>(range.head_begin);
  shape.head_end = static_cast<uint16_t>(range.head_end);
  shape.head_size = static_cast<uint16_t>(descriptor.head_size);
  shape.dtype = descriptor.dtype;
  return shape;
}

std::string HexOf(const CodecSetId& id) { return absl::BytesToHexString(ToBytes(id)); }

absl::Status CheckFits(const CodecSet& set, const Descriptor& d) {
  auto check = [](absl::string_view field, uint64_t asked, uint64_t has) -> absl::Status {
    if (asked == has) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("namespace_descriptor.", field, " = ", asked,
                                                      ": the codec set was made for ", has));
  };
  FQ_RETURN_IF_ERROR(check("layers", d.layers, static_cast<uint64_t>(set.layers())));
  FQ_RETURN_IF_ERROR(check("kv_heads", d.kv_heads, static_cast<uint64_t>(set.kv_heads())));
  return check("head_size", d.head_size, static_cast<uint64_t>(set.head_size()));
}

}  // namespace

NamespaceRegistry::NamespaceRegistry(NamespaceLimits limits,
                                     std::vector<std::shared_ptr<const CodecSet>> codec_sets,
                                     const Backend* backend, Device* device)
    : limits_(limits), codec_sets_(std::move(codec_sets)), backend_(backend), device_(device) {}

absl::StatusOr<std::shared_ptr<const SlabSpace>> NamespaceRegistry::Open(
    const std::string& tenant, const std::string& name, const Descriptor& descriptor,
    const Range& range) {
  absl::MutexLock lock(&mutex_);
  FQ_ASSIGN_OR_RETURN(Entry * entry, FindOrAdd({tenant, name}, descriptor));
  entry->last_opened = ++opens_;
  auto it = entry->spaces.find(range);
  if (it != entry->spaces.end()) return it->second;
  if (entry->spaces.size() >= limits_.max_ranges_per_namespace) {
    return absl::ResourceExhaustedError(absl::StrCat("max-ranges-per-namespace: ", name, " has ",
                                                     entry->spaces.size(), " ranges, at most ",
                                                     limits_.max_ranges_per_namespace));
  }
  const SlabShape shape = ShapeOf(descriptor, range);
  FQ_ASSIGN_OR_RETURN(auto codec, SlabCodec::Create(shape, entry->codec_set, backend_));
  std::shared_ptr<const DeviceCodec> device_codec;
  if (device_ != nullptr) {
    FQ_ASSIGN_OR_RETURN(device_codec, device_->CreateCodec(shape, entry->codec_set));
  }
  auto space = std::make_shared<const SlabSpace>(
      SlabSpace{tenant, name, entry->fingerprint, ++last_scope_, entry->codec_set, std::move(codec),
                std::move(device_codec), entry->quality});
  entry->spaces.emplace(range, space);
  return space;
}

absl::StatusOr<NamespaceRegistry::Entry*> NamespaceRegistry::FindOrAdd(
    const Name& name, const Descriptor& descriptor) {
  auto it = entries_.find(name);
  if (it != entries_.end()) {
    FQ_RETURN_IF_ERROR(CheckSame(it->second.descriptor, descriptor));
    return &it->second;
  }
  if (entries_.size() >= limits_.max_namespaces) FQ_RETURN_IF_ERROR(MakeRoom());
  FQ_ASSIGN_OR_RETURN(Entry entry, MakeEntry(descriptor));
  return &entries_.emplace(name, std::move(entry)).first->second;
}

absl::Status NamespaceRegistry::MakeRoom() {
  auto oldest = entries_.end();
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->second.InUse()) continue;
    if (oldest == entries_.end() || it->second.last_opened < oldest->second.last_opened)
      oldest = it;
  }
  if (oldest == entries_.end()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "max-namespaces: ", entries_.size(), " are in use, at most ", limits_.max_namespaces));
  }
  entries_.erase(oldest);
  return absl::OkStatus();
}

bool NamespaceRegistry::Entry::InUse() const {
  return std::any_of(spaces.begin(), spaces.end(),
                     [](const auto& space) { return space.second.use_count() > 1; });
}

absl::StatusOr<NamespaceRegistry::Entry> NamespaceRegistry::MakeEntry(
    const Descriptor& descriptor) const {
  Entry entry{
      descriptor, FingerprintOf(descriptor), nullptr, std::make_shared<NamespaceQuality>(), {}, 0};
  if (descriptor.codec_set_id.empty()) return entry;
  std::vector<std::string> loaded;
  for (const auto& set : codec_sets_) {
    if (std::memcmp(set->id().data(), descriptor.codec_set_id.data(), set->id().size()) == 0) {
      FQ_RETURN_IF_ERROR(CheckFits(*set, descriptor));
      entry.codec_set = set;
      return entry;
    }
    loaded.push_back(HexOf(set->id()));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "namespace_descriptor.codec_set_id = ", absl::BytesToHexString(descriptor.codec_set_id),
      ": not loaded; the node has [", absl::StrJoin(loaded, ", "), "]"));
}

absl::StatusOr<std::vector<NamespaceView>> NamespaceRegistry::List(const std::string& tenant,
                                                                   const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  std::vector<NamespaceView> views;
  for (const auto& [key, entry] : entries_) {
    if (key.first != tenant || (!name.empty() && key.second != name)) continue;
    NamespaceView view{key.second, entry.descriptor, entry.codec_set, entry.quality, {}};
    for (const auto& [range, space] : entry.spaces) view.spaces.push_back(space);
    views.push_back(std::move(view));
  }
  if (views.empty() && !name.empty()) {
    return absl::NotFoundError(absl::StrCat("namespace_name = ", name, ": no such namespace"));
  }
  return views;
}

size_t NamespaceRegistry::size() const {
  absl::MutexLock lock(&mutex_);
  return entries_.size();
}

ProfileQuality NamespaceRegistry::WorstQuality(Profile profile) const {
  absl::MutexLock lock(&mutex_);
  ProfileQuality worst;
  for (const auto& [name, entry] : entries_) {
    const ProfileQuality one = entry.quality->Of(profile);
    worst.samples += one.samples;
    worst.error_ratio = std::max(worst.error_ratio, one.error_ratio);
    worst.drift |= one.drift;
  }
  return worst;
}

size_t NamespaceRegistry::CodecSets(bool with_expected_error) const {
  return static_cast<size_t>(
      std::count_if(codec_sets_.begin(), codec_sets_.end(), [&](const auto& set) {
        return set->expected_error().compact.empty() != with_expected_error;
      }));
}

}  // namespace fq

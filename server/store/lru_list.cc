#include "server/store/lru_list.h"

#include "server/store/slab_entry.h"

namespace fq {

LruLinks& LruList::Links(SlabEntry* entry) const { return entry->*links_; }

void LruList::PushNewest(SlabEntry* entry) {
  Links(entry) = {nullptr, newest_, true};
  if (newest_ != nullptr) Links(newest_).newer = entry;
  newest_ = entry;
  if (oldest_ == nullptr) oldest_ = entry;
  ++size_;
}

void LruList::Remove(SlabEntry* entry) {
  LruLinks& links = Links(entry);
  if (!links.linked) return;
  (links.newer != nullptr ? Links(links.newer).older : newest_) = links.older;
  (links.older != nullptr ? Links(links.older).newer : oldest_) = links.newer;
  links = {};
  --size_;
}

}  // namespace fq

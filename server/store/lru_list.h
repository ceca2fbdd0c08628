// Order of last use of slabs, as a list through the entries themselves: no allocation, O(1).
// Not thread-safe: each list belongs to one IndexShard and is guarded by its mutex.
#pragma once

#include <cstddef>

namespace fq {

struct SlabEntry;

// Hooks of one entry in one list.
struct LruLinks {
  SlabEntry* newer = nullptr;
  SlabEntry* older = nullptr;
  bool linked = false;
};

class LruList {
 public:
  // `links` says which hooks of an entry this list uses.
  explicit LruList(LruLinks SlabEntry::*links) : links_(links) {}
  LruList(const LruList&) = delete;
  LruList& operator=(const LruList&) = delete;

  void PushNewest(SlabEntry* entry);  // entry is in no list of these hooks
  void Remove(SlabEntry* entry);      // no effect when it is not linked
  SlabEntry* oldest() const { return oldest_; }
  size_t size() const { return size_; }

 private:
  LruLinks& Links(SlabEntry* entry) const;

  LruLinks SlabEntry::*const links_;
  SlabEntry* newest_ = nullptr;
  SlabEntry* oldest_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fq

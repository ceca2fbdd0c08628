#include "server/connected_peers.h"

#include <utility>

namespace fq {

ConnectedPeers::Entry::~Entry() {
  absl::MutexLock lock(&peers_->mutex_);
  peers_->peers_.erase(name_);
}

std::unique_ptr<ConnectedPeers::Entry> ConnectedPeers::Add(const std::string& name, Peer peer) {
  absl::MutexLock lock(&mutex_);
  peers_[name] = std::make_shared<const Peer>(std::move(peer));
  return std::make_unique<Entry>(this, name);
}

std::shared_ptr<const Peer> ConnectedPeers::Find(const std::string& name) const {
  absl::MutexLock lock(&mutex_);
  auto it = peers_.find(name);
  return it == peers_.end() ? nullptr : it->second;
}

size_t ConnectedPeers::size() const {
  absl::MutexLock lock(&mutex_);
  return peers_.size();
}

}  // namespace fq

// Who is connected: what the transport proves of each peer, by the name under which gRPC knows its
// connection. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"

namespace fq {

struct Certificate {
  std::vector<std::string> uris, dns_names;  // subject alternative names
  std::string common_name;
};

struct Peer {
  enum class Transport { kUnix, kPlainTcp, kTls };
  Transport transport = Transport::kUnix;
  std::string address;                     // for logs, e.g. "10.0.0.7:41212"
  std::optional<Certificate> certificate;  // of kTls, when the client showed one we trust
};

class ConnectedPeers {
 public:
  // A peer that is there as long as the entry is.
  class Entry {
   public:
    Entry(ConnectedPeers* peers, std::string name) : peers_(peers), name_(std::move(name)) {}
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    ConnectedPeers* const peers_;
    const std::string name_;
  };

  // `name` must not be in use. The entry must not outlive this object.
  std::unique_ptr<Entry> Add(const std::string& name, Peer peer);

  // Null when it has gone.
  std::shared_ptr<const Peer> Find(const std::string& name) const;
  size_t size() const;

 private:
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::shared_ptr<const Peer>> peers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fq

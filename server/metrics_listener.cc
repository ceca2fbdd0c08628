#include "server/metrics_listener.h"

#include <exception>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fq {

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(const std::string& address,
                                                                        Metrics* metrics) {
  std::unique_ptr<MetricsListener> listener(new MetricsListener());
  listener->metrics_ =
      std::shared_ptr<prometheus::Collectable>(metrics, [](prometheus::Collectable*) {});
  try {  // civetweb reports by exceptions; they end here
    listener->exposer_ = std::make_unique<prometheus::Exposer>(address);
  } catch (const std::exception&) {  // its text is about civetweb's own objects
    return absl::UnavailableError(
        absl::StrCat("--metrics-listen = ", address,
                     ": cannot listen there: the port is taken, not ours to take, or the host is "
                     "no address of this machine"));
  }
  listener->exposer_->RegisterCollectable(listener->metrics_);
  return listener;
}

int MetricsListener::port() const {
  const std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports[0];
}

}  // namespace fq

// Structured lines on stderr: one per change of state, never per page. Never a key, a token, a salt
// or page bytes. Thread-safe.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include <spdlog/logger.h>

#include "absl/strings/string_view.h"

namespace fq {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

class Log {
 public:
  using Fields = std::initializer_list<std::pair<absl::string_view, std::string>>;

  // Writes to stderr; `least` and above.
  static std::unique_ptr<Log> ToStderr(LogLevel least, LogFormat format);
  // Writes through `sink`; for tests.
  Log(spdlog::sink_ptr sink, LogLevel least, LogFormat format);

  // `event` is a word such as session_opened; fields in the given order.
  void Write(LogLevel level, absl::string_view event, Fields fields) const;

 private:
  const LogFormat format_;
  std::shared_ptr<spdlog::logger> logger_;  // spdlog's own type; nobody else holds it
};

// "debug", "info", "warning", "error"; anything else is info.
LogLevel LogLevelFromName(absl::string_view name);

}  // namespace fq

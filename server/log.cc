#include "server/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fq {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

const char* NameOf(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

std::string Timestamp() {
  return absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone());
}

std::string AsJson(LogLevel level, absl::string_view event, Log::Fields fields) {
  nlohmann::ordered_json line;
  line["time"] = Timestamp();
  line["level"] = NameOf(level);
  line["event"] = std::string(event);
  for (const auto& [name, value] : fields) line[std::string(name)] = value;
  return line.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

std::string AsText(LogLevel level, absl::string_view event, Log::Fields fields) {
  std::string line = absl::StrCat(Timestamp(), " ", NameOf(level), " ", event);
  for (const auto& [name, value] : fields) {
    absl::StrAppend(&line, " ", name, "=\"", absl::CHexEscape(value), "\"");
  }
  return line;
}

}  // namespace

std::unique_ptr<Log> Log::ToStderr(LogLevel least, LogFormat format) {
  return std::make_unique<Log>(std::make_shared<spdlog::sinks::stderr_sink_mt>(), least, format);
}

Log::Log(spdlog::sink_ptr sink, LogLevel least, LogFormat format)
    : format_(format), logger_(std::make_shared<spdlog::logger>("flashquantd", std::move(sink))) {
  logger_->set_pattern("%v");
  logger_->set_level(ToSpdlog(least));
  logger_->flush_on(spdlog::level::debug);
}

void Log::Write(LogLevel level, absl::string_view event, Fields fields) const {
  if (!logger_->should_log(ToSpdlog(level))) return;
  std::string line =
      format_ == LogFormat::kJson ? AsJson(level, event, fields) : AsText(level, event, fields);
  logger_->log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

LogLevel LogLevelFromName(absl::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  return name == "error" ? LogLevel::kError : LogLevel::kInfo;
}

}  // namespace fq

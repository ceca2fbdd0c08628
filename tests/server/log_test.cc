#include "server/log.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <nlohmann/json.hpp>
#include <sstream>

namespace fq {
namespace {

std::string Logged(LogFormat format, LogLevel level, Log::Fields fields) {
  std::ostringstream out;
  const Log log(std::make_shared<spdlog::sinks::ostream_sink_mt>(out), LogLevel::kInfo, format);
  log.Write(level, "event_name", fields);
  return out.str();
}

TEST(Log, Json_IsOneObjectPerLine) {
  const std::string line =
      Logged(LogFormat::kJson, LogLevel::kWarning, {{"a", "x \"y\"\n\x80"}, {"b", "2"}});
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["event"], "event_name");
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["b"], "2");
  EXPECT_TRUE(json.contains("time"));
}

TEST(Log, Text_EscapesWhatPeersSend) {
  const std::string line = Logged(LogFormat::kText, LogLevel::kInfo, {{"a", "x\ny \"{}\""}});
  EXPECT_NE(line.find(" info event_name a=\"x\\ny \\\"{}\\\"\"\n"), std::string::npos) << line;
}

TEST(Log, BelowItsLevel_IsSilent) { EXPECT_EQ(Logged(LogFormat::kText, LogLevel::kDebug, {}), ""); }

TEST(Log, LevelNames_AreThoseOfTheOption) {
  EXPECT_EQ(LogLevelFromName("debug"), LogLevel::kDebug);
  EXPECT_EQ(LogLevelFromName("info"), LogLevel::kInfo);
  EXPECT_EQ(LogLevelFromName("warning"), LogLevel::kWarning);
  EXPECT_EQ(LogLevelFromName("error"), LogLevel::kError);
}

}  // namespace
}  // namespace fq

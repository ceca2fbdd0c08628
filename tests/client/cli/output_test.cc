#include "client/cli/output.h"

#include <gtest/gtest.h>

#include <sstream>

namespace fq::cli {
namespace {

std::string Printed(const Json& result, OutputFormat format) {
  std::ostringstream out;
  Print(result, format, out);
  return out.str();
}

TEST(Output, Object_OneLinePerField) {
  const Json result = {{"blocks", 3}, {"used_bytes", 3 << 20}, {"state", "serving"}};
  EXPECT_EQ(Printed(result, OutputFormat::kTable),
            "blocks      3\nused_bytes  3.00 MiB\nstate       serving\n");
  EXPECT_EQ(Printed(result, OutputFormat::kJson),
            "{\"blocks\":3,\"used_bytes\":3145728,\"state\":\"serving\"}\n");
}

TEST(Output, NestedObject_IsIndented) {
  const Json result = {{"loss", {{"bits", 2.25}}}};
  EXPECT_EQ(Printed(result, OutputFormat::kTable), "loss\n  bits  2.25\n");
}

TEST(Output, NestedRowsAndNull_AreIndentedAndADash) {
  const Json result = {{"at", Json::array({{{"n", 1}, {"x", nullptr}}, {{"n", 22}, {"x", 3}}})},
                       {"none", Json::array()}};
  EXPECT_EQ(Printed(result, OutputFormat::kTable), "at\n  n   x\n  1   -\n  22  3\nnone  []\n");
}

TEST(Output, Rows_AreColumns) {
  const Json rows = Json::array({{{"name", "a"}, {"n", 1}}, {{"name", "longer"}, {"n", 22}}});
  EXPECT_EQ(Printed(rows, OutputFormat::kTable), "name    n\na       1\nlonger  22\n");
  EXPECT_EQ(Printed(Json::array(), OutputFormat::kTable), "");
  EXPECT_EQ(Printed(Json::array(), OutputFormat::kJson), "[]\n");
}

TEST(Output, TextThatIsNoUtf8_StillPrints) {
  EXPECT_NE(Printed({{"name", "\xff"}}, OutputFormat::kJson), "");
}

TEST(Output, HumanBytes_PicksTheUnit) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.50 KiB");
  EXPECT_EQ(HumanBytes(5e15), "4547.47 TiB");
}

}  // namespace
}  // namespace fq::cli

#include "client/cli/files.h"

#include <cerrno>
#include <fstream>
#include <sstream>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace fq::cli {

absl::StatusOr<std::string> ReadFile(absl::string_view flag, const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in && (in.peek() == std::ifstream::traits_type::eof() || text << in.rdbuf())) {
    return text.str();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--", flag, " = ", path, ": cannot be read: ", std::generic_category().message(errno)));
}

absl::Status WriteFile(absl::string_view flag, const std::string& path,
                       absl::Span<const std::byte> bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (out) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "--", flag, " = ", path, ": cannot be written: ", std::generic_category().message(errno)));
}

absl::StatusOr<std::vector<uint32_t>> ParseTokens(const std::string& text) {
  std::vector<uint32_t> tokens;
  for (absl::string_view word :
       absl::StrSplit(text, absl::ByAnyChar(" \t\r\n,[]"), absl::SkipEmpty())) {
    uint32_t token = 0;
    if (!absl::SimpleAtoi(word, &token)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", tokens.size(), " is '", word, "', no id from 0 to 4294967295"));
    }
    tokens.push_back(token);
  }
  return tokens;
}

}  // namespace fq::cli

#include "server/byte_size.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fq {
namespace {

struct Unit {
  const char* name;
  uint64_t bytes;
};
constexpr uint64_t kKilo = 1000, kKibi = 1024;
constexpr Unit kUnits[] = {
    {"", 1},
    {"b", 1},
    {"k", kKilo},
    {"kb", kKilo},
    {"m", kKilo* kKilo},
    {"mb", kKilo* kKilo},
    {"g", kKilo* kKilo* kKilo},
    {"gb", kKilo* kKilo* kKilo},
    {"t", kKilo* kKilo* kKilo* kKilo},
    {"tb", kKilo* kKilo* kKilo* kKilo},
    {"kib", kKibi},
    {"mib", kKibi* kKibi},
    {"gib", kKibi* kKibi* kKibi},
    {"tib", kKibi* kKibi* kKibi* kKibi},
};
constexpr double kMost = 9.0e18;  // fits in 63 bits

absl::Status Bad(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat(text, ": must be a size such as 4096, 16MiB or 4GiB, at most 8EiB"));
}

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text) {
  const absl::string_view trimmed = absl::StripAsciiWhitespace(text);
  const size_t digits = trimmed.find_first_not_of("0123456789.");
  const absl::string_view number = trimmed.substr(0, digits);
  const absl::string_view rest =
      digits == absl::string_view::npos ? absl::string_view() : trimmed.substr(digits);
  const std::string unit = absl::AsciiStrToLower(absl::StripAsciiWhitespace(rest));
  double value = 0;
  if (number.empty() || !absl::SimpleAtod(number, &value)) return Bad(text);
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    const double bytes = value * static_cast<double>(known.bytes);
    if (!(bytes <= kMost)) return Bad(text);
    return static_cast<uint64_t>(std::llround(bytes));
  }
  return Bad(text);
}

}  // namespace fq

#include "client/cli/output.h"

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"

namespace fq::cli {
namespace {

std::string Cell(const std::string& name, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "-";
  if (value.is_number() && absl::EndsWith(name, "_bytes")) return HumanBytes(value.get<double>());
  if (value.is_number_float()) return absl::StrFormat("%.4g", value.get<double>());
  return value.dump();
}

void PrintRow(const std::vector<std::string>& cells, const std::vector<size_t>& widths,
              size_t indent, std::ostream& out) {
  out << std::string(indent, ' ');
  for (size_t i = 0; i < cells.size(); ++i) {
    const bool last = i + 1 == cells.size();
    out << cells[i] << (last ? "" : std::string(widths[i] - cells[i].size() + 2, ' '));
  }
  out << '\n';
}

void PrintRows(const Json& rows, size_t indent, std::ostream& out) {
  if (rows.empty()) return;
  std::vector<std::vector<std::string>> table(1);
  for (const auto& [name, value] : rows.front().items()) table.front().push_back(name);
  for (const Json& row : rows) {
    table.emplace_back();
    for (const auto& [name, value] : row.items()) table.back().push_back(Cell(name, value));
  }
  std::vector<size_t> widths(table.front().size(), 0);
  for (const auto& cells : table) {
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  for (const auto& cells : table) PrintRow(cells, widths, indent, out);
}

bool IsTable(const Json& value) {
  return value.is_array() && !value.empty() && value.front().is_object();
}

void PrintFields(const Json& object, size_t indent, std::ostream& out) {
  size_t width = 0;
  for (const auto& [name, value] : object.items()) width = std::max(width, name.size());
  for (const auto& [name, value] : object.items()) {
    out << std::string(indent, ' ') << name;
    if (value.is_object()) {
      out << '\n';
      PrintFields(value, indent + 2, out);
    } else if (IsTable(value)) {
      out << '\n';
      PrintRows(value, indent + 2, out);
    } else {
      out << std::string(width - name.size() + 2, ' ') << Cell(name, value) << '\n';
    }
  }
}

}  // namespace

void Print(const Json& result, OutputFormat format, std::ostream& out) {
  if (format == OutputFormat::kJson) {
    out << result.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
  } else if (result.is_array()) {
    PrintRows(result, 0, out);
  } else {
    PrintFields(result, 0, out);
  }
  out.flush();
}

std::string HumanBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 2, bytes, kUnits[unit]);
}

}  // namespace fq::cli

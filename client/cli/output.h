// Results of verbs as a table for people or as JSON for programs (fields are added, never renamed).
#pragma once

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>

namespace fq::cli {

using Json = nlohmann::ordered_json;

enum class OutputFormat { kTable, kJson };

// An object: one line per field. An array of objects: one line per object under a line of names.
// A nested object or array of objects of a table is indented below its name; null is "-". JSON is
// printed on one line.
void Print(const Json& result, OutputFormat format, std::ostream& out);

// "1.5 GiB"; below 1 KiB as it is.
std::string HumanBytes(double bytes);

}  // namespace fq::cli

// fqctl without a process around it: arguments in, exit code and text out. One call at a time.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "client/cli/exit_code.h"

namespace fq::cli {

// `arguments` without the program's name. Results go to `out`, errors and usage to `errors`.
ExitCode Run(const std::vector<std::string>& arguments, std::ostream& out, std::ostream& errors);

}  // namespace fq::cli

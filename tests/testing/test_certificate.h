// A certificate and its key in a folder, made for one test.
#pragma once

#include <string>
#include <vector>

namespace fq {

struct TestCertificate {
  std::string cert, key;  // paths of PEM files
};

// Signed by itself, for `common_name`; `alternative_names` as OpenSSL writes them, e.g. "DNS:a".
TestCertificate MakeCertificate(const std::string& folder, const std::string& common_name,
                                const std::string& alternative_names = "DNS:localhost");

}  // namespace fq

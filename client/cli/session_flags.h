// Flags that say which namespace, which part of the model and which prefix a verb works on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/command.h"
#include "client/cpp/client.h"

namespace fq::cli {

struct SessionFlags {
  std::string namespace_name;
  std::string model;  // empty: the descriptor that the node has
  std::string weights_digest, rope, codec_set_id_hex;
  uint32_t layers = 0, kv_heads = 0, head_size = 0;
  std::string dtype = "bf16";
  std::vector<std::string> extra;                 // key=value
  std::vector<uint32_t> layer_range, head_range;  // begin, end; empty: all

  void Add(CLI::App& app);

  // Asks the node for the descriptor unless --model gives one. NotFound: it has no such namespace.
  absl::StatusOr<client::SessionSpec> Spec(client::Client& client, const Command& command) const;

  // Of --model and the flags beside it. InvalidArgument names the flag.
  absl::StatusOr<client::Descriptor> DescriptorOf() const;
};

struct PrefixFlags {
  std::string tokens_file;
  uint32_t first_token = 0;
  uint32_t blocks = 0;
  std::string salt;

  void Add(CLI::App& app);

  // Token ids of --tokens, else --blocks times 64 ids counted from --first-token. At least a block.
  absl::StatusOr<std::vector<uint32_t>> Tokens() const;
};

}  // namespace fq::cli

// fqctl bench: how fast a running node stores, looks up and loads.
#include <algorithm>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/latency.h"
#include "client/cli/page_transfer.h"
#include "client/cli/session_flags.h"
#include "kernels/base/status_macros.h"

namespace fq::cli {
namespace {

constexpr uint32_t kTokenLimit = 32000;

struct BenchFlags {
  SessionFlags session;
  std::string profile = "universal";
  uint32_t blocks_per_call = 16;
  uint32_t calls = 32;
  uint64_t seed = 1;
  bool keep = false;
};

// One operation over all calls.
struct Measured {
  Latency latency;
  uint64_t bytes = 0;
};

struct Bench {
  client::Session& session;
  PageTransfer& transfer;
  client::Profile profile;
  std::vector<std::vector<client::BlockKey>> chains;  // [calls]
  std::vector<std::byte> pages;                       // of one call
  Measured store, lookup, load;
};

Json MeasuredJson(const char* operation, const Measured& m) {
  return {{"operation", operation},
          {"calls", m.latency.count()},
          {"raw_bytes", m.bytes},
          {"gb_per_second", m.latency.total_ms() > 0 ? m.bytes / m.latency.total_ms() / 1e6 : 0},
          {"p50_ms", m.latency.PercentileMs(0.5)},
          {"p95_ms", m.latency.PercentileMs(0.95)},
          {"p99_ms", m.latency.PercentileMs(0.99)},
          {"max_ms", m.latency.PercentileMs(1)}};
}

uint16_t HalfBits(float value, client::DType dtype) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  if (dtype == client::DType::kBf16) return static_cast<uint16_t>(bits >> 16);
  // Normal values only, which is all that RandomPages makes.
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) |
                               ((((bits >> 23) & 0xff) - 112) << 10 & 0x7c00) |
                               ((bits >> 13) & 0x3ff));
}

// Values spread as keys and values are, not noise of all exponents.
std::vector<std::byte> RandomPages(uint64_t bytes, client::DType dtype, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::byte> pages(bytes);
  const size_t element_bytes = client::ElementBytes(dtype);
  for (size_t at = 0; at < bytes; at += element_bytes) {
    float value = normal(random);
    if (value < 1e-3f && value > -1e-3f) value = 1e-3f;
    const uint16_t half = HalfBits(value, dtype);
    std::memcpy(&pages[at], element_bytes == 4 ? static_cast<const void*>(&value) : &half,
                element_bytes);
  }
  return pages;
}

std::vector<std::vector<client::BlockKey>> RandomChains(const client::Session& session,
                                                        const BenchFlags& flags) {
  std::mt19937_64 random(flags.seed);
  std::vector<std::vector<client::BlockKey>> chains;
  for (uint32_t i = 0; i < flags.calls; ++i) {
    std::vector<uint32_t> tokens(size_t{flags.blocks_per_call} * client::kBlockTokens);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % kTokenLimit);
    chains.push_back(client::KeysOf(session.Chain(absl::StrCat("bench ", flags.seed)), tokens));
  }
  return chains;
}

absl::Status StoreAll(Bench& bench) {
  for (const auto& keys : bench.chains) {
    const absl::Time begin = absl::Now();
    FQ_ASSIGN_OR_RETURN(const auto statuses,
                        bench.transfer.Store(bench.profile, keys, bench.pages));
    bench.store.latency.Add(absl::Now() - begin);
    bench.store.bytes += bench.pages.size();
    for (client::BlockStatus status : statuses) {
      if (status == client::BlockStatus::kOk) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("a block is '", client::Name(status),
                       "'; the node needs room, and a --seed not used yet"));
    }
  }
  return absl::OkStatus();
}

absl::Status LookUpAndLoadAll(Bench& bench) {
  std::vector<std::byte> pages(bench.pages.size());
  for (const auto& keys : bench.chains) {
    client::LookupCall call;
    call.keys = keys;
    const absl::Time begin = absl::Now();
    const client::Match match = bench.session.Lookup(call);
    const absl::Time found = absl::Now();
    FQ_RETURN_IF_ERROR(match.node);
    bench.lookup.latency.Add(found - begin);
    if (match.matched_blocks == 0) continue;  // evicted by the chains after it
    FQ_ASSIGN_OR_RETURN(
        const auto statuses,
        bench.transfer.Load(
            match.lease, client::Profile::kCompact,
            absl::MakeSpan(pages).subspan(0, match.matched_blocks * bench.transfer.block_bytes())));
    bench.load.latency.Add(absl::Now() - found);
    bench.load.bytes += statuses.size() * bench.transfer.block_bytes();
    FQ_RETURN_IF_ERROR(bench.session.Release({match.lease}, {}).status());
  }
  return absl::OkStatus();
}

// SmolLM2-135M, unless the flags describe another model.
void SetDefaults(SessionFlags& flags) {
  if (flags.model.empty()) flags.model = "fqctl-bench";
  if (flags.layers == 0) flags.layers = 30;
  if (flags.kv_heads == 0) flags.kv_heads = 3;
  if (flags.head_size == 0) flags.head_size = 64;
}

absl::StatusOr<ExitCode> RunBench(Command& command, BenchFlags& flags) {
  FQ_ASSIGN_OR_RETURN(const auto profile, client::ProfileOf(flags.profile));
  FQ_ASSIGN_OR_RETURN(const auto client, Connect(command));
  SetDefaults(flags.session);
  FQ_ASSIGN_OR_RETURN(const auto spec, flags.session.Spec(*client, command));
  FQ_ASSIGN_OR_RETURN(const auto session, client->Open(spec, command.deadline()));
  FQ_ASSIGN_OR_RETURN(const auto transfer, PageTransfer::Create(*session, command.deadline()));
  Bench bench{*session, *transfer, profile, RandomChains(*session, flags), {}, {}, {}, {}};
  bench.pages = RandomPages(flags.blocks_per_call * transfer->block_bytes(), spec.descriptor.dtype,
                            flags.seed);
  FQ_RETURN_IF_ERROR(StoreAll(bench));
  FQ_RETURN_IF_ERROR(LookUpAndLoadAll(bench));
  if (!flags.keep) {
    FQ_RETURN_IF_ERROR(client->Purge(spec.namespace_name, command.deadline()).status());
  }
  command.Show(
      Json::array({MeasuredJson("store", bench.store), MeasuredJson("lookup", bench.lookup),
                   MeasuredJson("load", bench.load)}));
  return ExitCode::kOk;
}

}  // namespace

void AddBench(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<BenchFlags>();
  CLI::App& verb = AddVerb(
      app, command, "bench",
      "Measure store, lookup and load of random pages, GB/s of raw pages and latencies of calls, "
      "copies on this side included; then purge the namespace (RPCs KvCache.*, Admin.Purge)",
      flags, RunBench);
  flags->session.namespace_name = "fqctl-bench";
  flags->session.Add(verb);
  verb.get_option("--namespace")->required(false);
  AddFlag(verb, "profile", flags->profile, "how the pages are stored")->check(AnyProfile());
  AddFlag(verb, "blocks-per-call", flags->blocks_per_call, "blocks of one chain and call")
      ->check(CLI::Range(1u, 1024u));
  AddFlag(verb, "calls", flags->calls, "chains, one after the other")
      ->check(CLI::Range(1u, 1'000'000u));
  AddFlag(verb, "seed", flags->seed, "of tokens and values");
  verb.add_flag("--keep", flags->keep, "leave the blocks where they are");
}

}  // namespace fq::cli

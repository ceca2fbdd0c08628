// The floor of a request (DESIGN.md, P7) on a real node: whatever was stored and whatever the node
// dropped since, a lookup and a load give that much or a miss, never less.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "tests/testing/fitting_rows.h"
#include "tests/testing/node_process.h"

namespace fq::client {
namespace {

constexpr uint32_t kBlocks = 4;
constexpr std::byte kPoison{0xA5};
constexpr auto kTake = LookupCall::Lease::kTake;

// What happens to the chain between its Store and the request.
enum class Since { kNothing, kChainGrew, kPressure };

struct Case {
  Profile stored;
  Since since;
  // Held afterwards, one letter per block: e exact, n near-lossless, c compact, u universal.
  std::string held;
};

const Case kCases[] = {
    {Profile::kExact, Since::kNothing, "eeee"},
    {Profile::kExact, Since::kChainGrew, "eeee"},
    {Profile::kNearLossless, Since::kNothing, "nnnn"},
    {Profile::kNearLossless, Since::kChainGrew, "nnnn"},
    {Profile::kNearLossless, Since::kPressure, "cccc"},
    {Profile::kCompact, Since::kNothing, "ccnn"},
    {Profile::kCompact, Since::kChainGrew, "cccc"},
    {Profile::kCompact, Since::kPressure, "cccc"},
    {Profile::kUniversal, Since::kNothing, "uuuu"},
    {Profile::kUniversal, Since::kChainGrew, "uuuu"},
};
constexpr Profile kFloors[] = {Profile::kExact, Profile::kNearLossless, Profile::kCompact};

Profile ProfileOfLetter(char letter) {
  return letter == 'e'   ? Profile::kExact
         : letter == 'n' ? Profile::kNearLossless
         : letter == 'c' ? Profile::kCompact
                         : Profile::kUniversal;
}

// Universal counts as compact for a floor (kv_cache.proto).
bool Satisfies(char letter, Profile floor) {
  return std::min(ProfileOfLetter(letter), Profile::kCompact) <= floor;
}

std::string SetPath() {
  const std::string path = absl::StrCat("/tmp/fq-floor-", getpid(), ".fqcs");
  const std::vector<std::byte> file = BuildCodecSet(1, 2, 64, 9);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  return path;
}

class FloorNode : public testing::Test {
 protected:
  FloorNode()
      : set_path_(SetPath()),
        set_(*CodecSet::Load(set_path_)),
        node_({"--host-bytes", "1MiB", "--codec-set", set_path_}) {
    ClientOptions options;
    options.endpoint = node_.endpoint();
    options.deadline = absl::Seconds(60);
    client_ = *Client::Create(options);
    spec_.namespace_name = "floors";
    spec_.descriptor.model = "synthetic";
    spec_.descriptor.layers = 1;
    spec_.descriptor.kv_heads = 2;
    spec_.descriptor.head_size = 64;
    spec_.descriptor.dtype = DType::kF32;
    spec_.descriptor.codec_set_id = std::string(set_->id().begin(), set_->id().end());
    spec_.range = WholeModel(spec_.descriptor);
    session_ = *client_->Open(spec_, absl::Seconds(60));
  }
  ~FloorNode() override { std::remove(set_path_.c_str()); }

  uint64_t block_bytes() const { return DenseBlockBytes(spec_.descriptor, spec_.range); }

  std::vector<BlockKey> Keys(uint32_t first_token, size_t blocks) const {
    std::vector<uint32_t> tokens(blocks * kBlockTokens);
    std::iota(tokens.begin(), tokens.end(), first_token);
    return KeysOf(session_->Chain("salt"), tokens);
  }

  // Stores blocks [begin, end) of a chain.
  void Store(const std::vector<BlockKey>& keys, size_t begin, size_t end, Profile profile) {
    std::vector<float> rows;
    for (size_t i = begin; i < end; ++i) {
      const std::vector<float> block = FittingBlock(*set_, ++blocks_made_);
      rows.insert(rows.end(), block.begin(), block.end());
    }
    const auto all = absl::MakeConstSpan(keys);
    StoreCall call;
    call.profile = profile;
    call.first_block_index = static_cast<uint32_t>(begin);
    call.keys = all.subspan(begin, end - begin);
    call.preceding_keys =
        all.subspan(begin - std::min<size_t>(begin, 2), std::min<size_t>(begin, 2));
    call.layout = DenseLayout(spec_.descriptor, spec_.range);
    call.places = DensePlaces(0, block_bytes(), end - begin);
    call.payload = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(rows.data()),
                                       rows.size() * sizeof(float));
    const auto statuses = session_->Store(call);
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    for (BlockStatus status : *statuses) ASSERT_EQ(status, BlockStatus::kOk);
  }

  double Counter(const std::string& name) {
    return client_->Status(absl::Seconds(60)).value().counters.at(name);
  }

  // Stores the case's chain and lets happen to it what the case says.
  std::vector<BlockKey> Prepare(const Case& one) {
    std::vector<BlockKey> keys = Keys(1'000'000, kBlocks + 2);
    Store(keys, 0, kBlocks, one.stored);
    if (one.since == Since::kChainGrew) Store(keys, kBlocks, kBlocks + 2, Profile::kCompact);
    if (one.since == Since::kPressure) {
      DropAllRefinements(keys, one.stored == Profile::kCompact ? 2 : kBlocks);
    }
    return keys;
  }

  // Stores other blocks until the node has dropped that many refinements for room. The chain is
  // used all the time, so that only its refinements go.
  void DropAllRefinements(const std::vector<BlockKey>& keys, double refined) {
    for (uint32_t i = 1; Counter("fq_dropped_refinements_total") < refined; ++i) {
      ASSERT_LT(i, 1000u) << "the node never dropped the refinements";
      Lookup(keys, Profile::kCompact, LookupCall::Lease::kNone);
      Store(Keys(1000 * i, 1), 0, 1, Profile::kUniversal);
    }
  }

  Match Lookup(const std::vector<BlockKey>& keys, Profile floor, LookupCall::Lease lease) {
    LookupCall call;
    call.keys = absl::MakeConstSpan(keys).first(kBlocks);
    call.floor = floor;
    call.lease = lease;
    return session_->Lookup(call);
  }

  // Loads all blocks of a match and returns their statuses as letters: k ok, f below the floor. The
  // place of a block that is not ok must be untouched, that of one that is must be written.
  std::string Load(const Match& match, Profile floor) {
    std::vector<std::byte> memory(match.matched_blocks * block_bytes(), kPoison);
    LoadCall call;
    call.lease = match.lease;
    call.block_count = match.matched_blocks;
    call.floor = floor;
    call.destination = absl::MakeSpan(memory);
    const Loaded loaded = session_->Load(call);
    EXPECT_TRUE(loaded.node.ok()) << loaded.node;
    std::string letters;
    for (size_t i = 0; i < loaded.statuses.size(); ++i) {
      const BlockStatus status = loaded.statuses[i];
      letters += status == BlockStatus::kOk ? 'k' : status == BlockStatus::kBelowFloor ? 'f' : '?';
      const auto begin = memory.begin() + static_cast<std::ptrdiff_t>(i * block_bytes());
      const bool untouched = std::all_of(begin, begin + static_cast<std::ptrdiff_t>(block_bytes()),
                                         [](std::byte byte) { return byte == kPoison; });
      EXPECT_EQ(untouched, status != BlockStatus::kOk) << i;
    }
    return letters;
  }

  // Loads of every profile so far, by letter.
  std::map<char, double> LoadedByProfile() {
    std::map<char, double> counts;
    for (char letter : {'e', 'n', 'c', 'u'}) {
      counts[letter] = Counter(
          absl::StrCat("fq_blocks_loaded_total{profile=\"", Name(ProfileOfLetter(letter)), "\"}"));
    }
    return counts;
  }

  // Runs `load` and expects that it delivered those blocks as those profiles, and nothing else.
  template <typename Call>
  void ExpectDelivers(const std::string& letters, Call load) {
    const auto before = LoadedByProfile();
    load();
    const auto after = LoadedByProfile();
    for (const auto& [letter, count] : before) {
      EXPECT_EQ(after.at(letter) - count, std::count(letters.begin(), letters.end(), letter))
          << letter;
    }
  }

  const std::string set_path_;
  const std::shared_ptr<const CodecSet> set_;  // shared by its own factory
  NodeProcess node_;
  SessionSpec spec_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<Session> session_;
  uint64_t blocks_made_ = 0;
};

class FloorTest : public FloorNode, public testing::WithParamInterface<Case> {};

TEST_P(FloorTest, LookupAndLoad_GiveTheFloorOrAMiss) {
  const auto keys = Prepare(GetParam());
  const std::string& held = GetParam().held;
  for (Profile floor : kFloors) {
    SCOPED_TRACE(absl::StrCat("floor ", Name(floor)));
    const auto below = std::find_if_not(held.begin(), held.end(),
                                        [&](char letter) { return Satisfies(letter, floor); });
    const std::string matched(held.begin(), below);
    const std::string counter = below == held.end()
                                    ? ""
                                    : absl::StrCat("fq_lookups_below_floor_total{profile=\"",
                                                   Name(ProfileOfLetter(*below)), "\"}");
    const double before = counter.empty() ? 0 : Counter(counter);
    const Match match = Lookup(keys, floor, kTake);
    ASSERT_TRUE(match.node.ok()) << match.node;
    ASSERT_EQ(match.matched_blocks, matched.size());
    for (size_t i = 0; i < matched.size(); ++i) {
      EXPECT_EQ(match.profiles[i], ProfileOfLetter(matched[i])) << i;
    }
    if (!counter.empty()) {
      EXPECT_EQ(Counter(counter), before + 1);
    }
    if (matched.empty()) continue;
    ExpectDelivers(matched,
                   [&] { EXPECT_EQ(Load(match, floor), std::string(matched.size(), 'k')); });
  }
}

// A lease that was taken for less does not make a load give less than it asks for.
TEST_P(FloorTest, LoadWithAHigherFloorThanItsLookup_BelowFloorPerBlock) {
  const auto keys = Prepare(GetParam());
  const std::string& held = GetParam().held;
  for (Profile floor : kFloors) {
    SCOPED_TRACE(absl::StrCat("floor ", Name(floor)));
    const Match match = Lookup(keys, Profile::kCompact, kTake);
    ASSERT_EQ(match.matched_blocks, kBlocks);
    std::string expected, delivered;
    for (char letter : held) {
      expected += Satisfies(letter, floor) ? 'k' : 'f';
      if (Satisfies(letter, floor)) delivered += letter;
    }
    const double before = Counter("fq_blocks_missed_total{reason=\"below_floor\"}");
    ExpectDelivers(delivered, [&] { EXPECT_EQ(Load(match, floor), expected); });
    EXPECT_EQ(Counter("fq_blocks_missed_total{reason=\"below_floor\"}") - before,
              std::count(expected.begin(), expected.end(), 'f'));
  }
}

// A lookup without a lease saw the refinement; the chain grew; the load's own lookup misses.
TEST_F(FloorNode, RefinementDroppedBetweenLookupAndLoad_Miss) {
  const auto keys = Keys(1'000'000, kBlocks + 2);
  Store(keys, 0, 2, Profile::kCompact);  // its whole length is tail
  const auto kNone = LookupCall::Lease::kNone;
  EXPECT_EQ(Lookup(keys, Profile::kNearLossless, kNone).matched_blocks, 2u);
  const Match held = Lookup(keys, Profile::kNearLossless, kTake);  // with a lease
  Store(keys, 2, kBlocks, Profile::kCompact);
  EXPECT_EQ(Load(held, Profile::kNearLossless), "kk");  // the lease kept what it promised
  ASSERT_TRUE(session_->Release({held.lease}, absl::Seconds(60)).ok());
  const Match after = Lookup(keys, Profile::kNearLossless, kTake);
  EXPECT_EQ(after.matched_blocks, 0u);
  EXPECT_EQ(Lookup(keys, Profile::kCompact, kTake).matched_blocks, kBlocks);
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  static constexpr const char* kSince[] = {"AsStored", "ChainGrew", "Pressure"};
  std::string name(Name(info.param.stored));
  name.erase(std::remove(name.begin(), name.end(), '-'), name.end());
  return absl::StrCat(name, kSince[static_cast<int>(info.param.since)]);
}

INSTANTIATE_TEST_SUITE_P(All, FloorTest, testing::ValuesIn(kCases), CaseName);

}  // namespace
}  // namespace fq::client

#include "server/metrics.h"

#include <gtest/gtest.h>

#include <set>

namespace fq {
namespace {

TEST(Metrics, AllSeries_ExistFromTheStart) {
  const Metrics metrics;
  const auto values = metrics.Values();
  for (const char* name :
       {"fq_requests_total{code=\"OK\",method=\"Store\"}", "fq_leases", "fq_store_used_bytes",
        "fq_blocks_missed_total{reason=\"check_failed\"}", "fq_evicted_blocks_total",
        "fq_request_duration_seconds_count{method=\"Load\"}",
        "fq_quality_error_ratio{profile=\"compact\"}",
        "fq_quality_drift{profile=\"near-lossless\"}", "fq_codec_sets{expected_error=\"absent\"}",
        "fq_blocks_beyond_calibration_total{length=\"twice\",operation=\"load\"}",
        "fq_build_info{version=\"" FQ_VERSION "\"}"}) {
    EXPECT_EQ(values.count(name), 1u) << name;
  }
}

TEST(Metrics, Names_AreUniqueAndOfOneForm) {
  std::set<std::string> names;
  for (const auto& family : Metrics().Collect()) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name;
    EXPECT_EQ(family.name.rfind("fq_", 0), 0u) << family.name;
    EXPECT_FALSE(family.help.empty()) << family.name;
    const bool total =
        family.name.size() > 6 && family.name.substr(family.name.size() - 6) == "_total";
    EXPECT_EQ(total, family.type == prometheus::MetricType::Counter) << family.name;
  }
}

TEST(Metrics, Add_CountsAndObserves) {
  const Metrics metrics;
  metrics.Add(Metric::kRequests, {"Load", "NOT_FOUND"}, 2);
  metrics.Add(Metric::kRequests, {"Load", "NOT_FOUND"}, 1);
  metrics.Add(Metric::kRequestSeconds, {"Load"}, 0.25);
  metrics.Add(Metric::kTailRefinements, {}, 1);
  auto values = metrics.Values();
  EXPECT_EQ(values["fq_requests_total{code=\"NOT_FOUND\",method=\"Load\"}"], 3);
  EXPECT_EQ(values["fq_request_duration_seconds_sum{method=\"Load\"}"], 0.25);
  EXPECT_EQ(values["fq_tail_refinements_dropped_total"], 1);
}

TEST(Metrics, UnknownLabels_AreDropped) {
  const Metrics metrics;
  const size_t before = metrics.Values().size();
  metrics.Add(Metric::kRequests, {"Nonsense", "OK"}, 1);
  metrics.Add(Metric::kRequests, {}, 1);
  EXPECT_EQ(metrics.Values().size(), before);
}

TEST(Metrics, Sampler_IsAskedEachTime) {
  Metrics metrics;
  double leases = 1;
  metrics.SetSampler([&] {
    NodeSample sample;
    sample.leases = leases;
    sample.store.evicted_slabs = 7;
    sample.compact_drift = 1;
    return sample;
  });
  EXPECT_EQ(metrics.Values()["fq_leases"], 1);
  EXPECT_EQ(metrics.Values()["fq_quality_drift{profile=\"compact\"}"], 1);
  EXPECT_EQ(metrics.Values()["fq_quality_drift{profile=\"near-lossless\"}"], 0);
  leases = 2;
  EXPECT_EQ(metrics.Values()["fq_leases"], 2);
  EXPECT_EQ(metrics.Values()["fq_evicted_blocks_total"], 7);
}

}  // namespace
}  // namespace fq

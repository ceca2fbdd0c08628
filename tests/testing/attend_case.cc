#include "tests/testing/attend_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/check.h"
#include "kernels/codec/float_convert.h"
#include "kernels/codec/page_layout.h"
#include "kernels/codec/quantise.h"
#include "kernels/page_bytes.h"
#include "tests/testing/codec_set_builder.h"
#include "tests/testing/random.h"

namespace fq {
namespace {

constexpr double kLog2E = 1.4426950408889634;

std::vector<uint8_t> ClassesOf(const std::string& pairs) {
  std::vector<uint8_t> classes;
  for (char digit : pairs) classes.insert(classes.end(), 2, static_cast<uint8_t>(digit - '0'));
  return classes;
}

std::string JsonList(const std::vector<uint8_t>& values) {
  return absl::StrCat("[", absl::StrJoin(values, ","), "]");
}

template <typename T>
absl::StatusOr<DeviceBuffer> Copy(const std::vector<T>& values) {
  return DeviceBuffer::CopyOf(values.data(), std::max<size_t>(values.size(), 1) * sizeof(T));
}

}  // namespace

CodecProfile ProfileOf(const std::string& k, const std::string& v, const std::string& k_refinement,
                       const std::string& v_refinement) {
  return {ClassesOf(k), ClassesOf(v), ClassesOf(k_refinement), ClassesOf(v_refinement)};
}

std::shared_ptr<const CodecSet> MakeCodecSet(int head_size,
                                             const std::vector<CodecProfile>& profiles) {
  std::vector<std::string> list, index;
  for (const CodecProfile& p : profiles) {
    index.push_back(absl::StrCat(list.size()));
    list.push_back(absl::StrCat("{\"k\":", JsonList(p.k), ",\"v\":", JsonList(p.v),
                                ",\"k_refinement\":", JsonList(p.k_refinement),
                                ",\"v_refinement\":", JsonList(p.v_refinement), "}"));
  }
  const std::string patch = absl::StrCat("{\"profiles\":[", absl::StrJoin(list, ","),
                                         "],\"profile_of\":[[", absl::StrJoin(index, ","), "]]}");
  auto set = CodecSet::Parse(
      PatchCodecSet(BuildCodecSet(1, static_cast<int>(profiles.size()), head_size, 3), patch));
  FQ_CHECK(set.ok());
  return *set;
}

std::vector<AttendRun> RunsOf(const AttendCase::Sequence& sequence, int table_begin) {
  std::vector<AttendRun> runs;
  for (const AttendCase::Page& page : sequence) {
    const int table = table_begin++;
    AttendRun run;
    run.table_begin = table;
    run.token_end = page.tokens;
    if (page.kind == PageKind::kExact) {
      run.kind = AttendRun::kExact;
    } else if (page.sink) {
      run.kind = AttendRun::kSinkRecord;
      run.token_end = std::min(page.tokens, kSinkTokens);
      runs.push_back(run);
      run.kind = page.refined ? AttendRun::kSinkRefined : AttendRun::kSinkBase;
      run.token_begin = kSinkTokens;
      run.token_end = page.tokens;
    } else {
      run.kind = page.refined ? AttendRun::kRefined : AttendRun::kBase;
    }
    if (!runs.empty() && runs.back().kind == run.kind && run.token_begin == 0 &&
        runs.back().token_end % kBlockTokens == 0) {
      runs.back().token_end += page.tokens;
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

AttendCase::~AttendCase() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

int AttendCase::rows() const {
  return static_cast<int>(sequences_.size()) * options_.queries * options_.set->kv_heads() *
         options_.queries_per_kv_head;
}

int AttendCase::RowOf(int sequence, int query, int kv_head, int q_head) const {
  return ((sequence * options_.queries + query) * options_.set->kv_heads() + kv_head) *
             options_.queries_per_kv_head +
         q_head;
}

float AttendCase::scale() const {
  return 1.0f / std::sqrt(static_cast<float>(options_.set->head_size()));
}

float AttendCase::ElementValue(uint16_t bits) const {
  return options_.dtype == DType::kBF16 ? BFloat16ToFloat(bits) : HalfToFloat(bits);
}

absl::StatusOr<std::unique_ptr<AttendCase>> AttendCase::Create(const Options& options,
                                                               std::vector<Sequence> sequences) {
  std::unique_ptr<AttendCase> made(new AttendCase);
  made->options_ = options;
  made->sequences_ = std::move(sequences);
  made->FillSlabs();
  made->FillQueries();
  FQ_RETURN_IF_CUDA_ERROR(cudaStreamCreate(&made->stream_));
  FQ_ASSIGN_OR_RETURN(TablesDevice tables, TablesDevice::Create(*options.set));
  made->tables_ = std::make_unique<TablesDevice>(std::move(tables));
  FQ_RETURN_IF_ERROR(made->Upload());
  FQ_RETURN_IF_ERROR(made->Plan());
  return made;
}

void AttendCase::FillQueries() {
  const int d = options_.set->head_size();
  Random random(options_.seed + 99);
  q_.resize(static_cast<size_t>(rows()) * d);
  std::vector<double> u(d);
  for (int row = 0; row < rows(); ++row) {
    for (double& component : u) component = random.Gaussian();
    const HeadCodec& codec = options_.set->k(0, HeadOf(row));
    double power = 0;
    for (int i = 0; i < d * d; ++i) power += codec.weight[i / d] * codec.a[i] * codec.a[i];
    for (int c = 0; c < d; ++c) {
      u[c] *= std::sqrt(codec.weight[c] * d / power) * options_.q_scale;
    }
    SetQuery(row, u);
  }
}

void AttendCase::SetQuery(int row, const std::vector<double>& components) {
  const int d = options_.set->head_size();
  const HeadCodec& codec = options_.set->k(0, HeadOf(row));
  for (int i = 0; i < d; ++i) {
    double sum = 0;
    for (int c = 0; c < d; ++c) sum += codec.a[c * d + i] * components[c];
    const float value = static_cast<float>(sum);
    q_[static_cast<size_t>(row) * d + i] = bf16() ? FloatToBFloat16(value) : FloatToHalf(value);
  }
}

int AttendCase::HeadOf(int row) const {
  return row / options_.queries_per_kv_head % options_.set->kv_heads();
}

void AttendCase::FillSlabs() {
  uint64_t seed = options_.seed * 1000;
  for (const Sequence& sequence : sequences_) {
    slabs_.emplace_back();
    for (const Page& page : sequence) slabs_.back().push_back(RandomSlab(page, ++seed));
  }
}

// Any bytes are codes; exact rows and the scales of sink records must be ordinary numbers.
AttendCase::Slab AttendCase::RandomSlab(const Page& page, uint64_t seed) const {
  Random random(seed);
  Slab slab;
  const int d = options_.set->head_size();
  for (int head = 0; head < options_.set->kv_heads(); ++head) {
    const CodecProfile& profile = options_.set->profile(0, head);
    const auto append = [&](PageKind kind, std::vector<std::byte>* to) {
      const size_t at = to->size();
      to->resize(at + PageBytes({kind, options_.dtype, d, page.sink}, &profile));
      for (size_t i = at; i < to->size(); ++i) {
        (*to)[i] = static_cast<std::byte>(random.Next() >> 56);
      }
      return to->data() + at;
    };
    std::byte* bytes = append(page.kind, &slab.primary);
    if (page.refined) append(PageKind::kRefinement, &slab.refinement);
    if (page.kind == PageKind::kExact) {
      for (int i = 0; i < 2 * kBlockTokens * d; ++i) {
        const float value = static_cast<float>(random.Gaussian());
        const uint16_t bits =
            options_.dtype == DType::kBF16 ? FloatToBFloat16(value) : FloatToHalf(value);
        std::memcpy(bytes + 2 * i, &bits, 2);
      }
    } else if (page.sink) {
      std::byte* scales =
          slab.primary.data() + slab.primary.size() - 2 * kSinkTokens * sizeof(float);
      for (int i = 0; i < 2 * kSinkTokens; ++i) {
        const float scale = 0.02f + 0.01f * static_cast<float>(random.Uniform());
        std::memcpy(scales + 4 * i, &scale, 4);
      }
    }
  }
  return slab;
}

absl::Status AttendCase::Upload() {
  std::vector<const std::vector<std::byte>*> parts;
  std::vector<size_t> table;  // of a part: its place in the page tables
  size_t entries = 0, bytes = 0;
  for (const auto& sequence : slabs_) {
    for (const Slab& slab : sequence) {
      parts.push_back(&slab.primary);
      parts.push_back(&slab.refinement);
      FQ_CHECK(slab.primary.size() % 64 == 0 && slab.refinement.size() % 64 == 0);
      bytes += slab.primary.size() + slab.refinement.size();
      ++entries;
    }
  }
  std::vector<size_t> order(parts.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  Random random(options_.seed + options_.placement);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.Below(static_cast<uint32_t>(i))]);
  }
  FQ_ASSIGN_OR_RETURN(pool_, DeviceBuffer::Allocate(std::max<size_t>(bytes, 1)));
  std::vector<std::byte> packed(bytes);
  std::vector<uint32_t> pages(entries), refinements(entries);
  size_t at = 0;
  for (size_t i : order) {
    (i % 2 == 0 ? pages : refinements)[i / 2] = static_cast<uint32_t>(at / 64);
    std::copy(parts[i]->begin(), parts[i]->end(), packed.begin() + static_cast<int64_t>(at));
    at += parts[i]->size();
  }
  FQ_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(pool_.as<void>(), packed.data(), bytes, cudaMemcpyHostToDevice));
  FQ_ASSIGN_OR_RETURN(pages_, Copy(pages));
  FQ_ASSIGN_OR_RETURN(refinements_, Copy(refinements));
  FQ_ASSIGN_OR_RETURN(out_, DeviceBuffer::Allocate(q_.size() * 2));
  FQ_ASSIGN_OR_RETURN(lse_, DeviceBuffer::Allocate(rows() * sizeof(float)));
  return absl::OkStatus();
}

absl::Status AttendCase::Plan() {
  bool refined = false;
  std::vector<AttendSequence> planned;
  int table = 0;
  for (const Sequence& sequence : sequences_) {
    AttendSequence one;
    one.runs = RunsOf(sequence, table);
    one.first_query = static_cast<int>(planned.size()) * options_.queries;
    one.queries = options_.queries;
    planned.push_back(one);
    table += static_cast<int>(sequence.size());
    for (const Page& page : sequence) refined |= page.refined;
  }
  if (options_.backward) std::reverse(planned.begin(), planned.end());
  const AttendRange range{0, 0, options_.set->kv_heads(), options_.dtype};
  AttendLayer layer = DescribeLayer(*options_.set, range, 0, refined, tables_->Record(0, 0));
  layer.variant.replicated_tables = options_.replicated_tables;
  FQ_ASSIGN_OR_RETURN(kernel_, AttendKernel::Build(layer.variant, options_.cache_folder));
  int blocks = options_.blocks;
  const int spare_blocks = blocks == 0 ? kSpareBlocks : 0;
  if (blocks == 0) {
    FQ_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
    blocks = AttendBlocks(blocks);
  }
  const AttendPlan plan =
      PlanAttend({blocks, options_.queries_per_kv_head, options_.set->head_size(), spare_blocks},
                 layer.heads, planned);
  FQ_ASSIGN_OR_RETURN(AttendWorkspace workspace,
                      AttendWorkspace::Create(plan, options_.set->head_size()));
  tasks_ = plan.tasks;
  workspace_ = std::make_unique<AttendWorkspace>(std::move(workspace));
  return absl::OkStatus();
}

absl::StatusOr<AttendCase::Result> AttendCase::Run() {
  FQ_ASSIGN_OR_RETURN(q_device_, Copy(q_));
  return Attend(kAttendAllSteps);
}

absl::Status AttendCase::LaunchRopeOf(const DeviceBuffer (&inputs)[7], const Rope& rope) {
  const int d = options_.set->head_size();
  RopeInputs with;
  with.tokens = static_cast<int>(rope.positions.size());
  with.kv_heads = options_.set->kv_heads();
  with.query_heads = with.kv_heads * options_.queries_per_kv_head;
  with.q = inputs[0].as<void>();
  with.k = inputs[1].as<void>();
  with.v = inputs[2].as<void>();
  with.q_stride = with.query_heads * d;
  with.k_stride = with.v_stride = with.token_stride = with.kv_heads * d;
  with.cos_sin = inputs[3].as<void>();
  with.positions = inputs[4].as<int64_t>();
  with.slots = inputs[5].as<int64_t>();
  with.key_cache = inputs[6].as<void>();
  with.value_cache = inputs[6].as<uint16_t>() + rope.key_cache.size();
  with.block_tokens = rope.block_tokens;
  with.block_stride = rope.block_tokens * with.token_stride;
  with.head_stride = d;
  with.rotated_q = q_device_.as<void>();
  return LaunchRope(*kernel_, *workspace_, with, scale(), stream_);
}

absl::StatusOr<AttendCase::Result> AttendCase::RunBehindRope(Rope* rope) {
  DeviceBuffer inputs[7];
  FQ_ASSIGN_OR_RETURN(inputs[0], Copy(q_));
  FQ_ASSIGN_OR_RETURN(inputs[1], Copy(rope->k));
  FQ_ASSIGN_OR_RETURN(inputs[2], Copy(rope->v));
  FQ_ASSIGN_OR_RETURN(inputs[3], Copy(rope->cos_sin));
  FQ_ASSIGN_OR_RETURN(inputs[4], Copy(rope->positions));
  FQ_ASSIGN_OR_RETURN(inputs[5], Copy(rope->slots));
  std::vector<uint16_t> caches = rope->key_cache;
  caches.insert(caches.end(), rope->value_cache.begin(), rope->value_cache.end());
  FQ_ASSIGN_OR_RETURN(inputs[6], Copy(caches));
  FQ_ASSIGN_OR_RETURN(q_device_, Copy(std::vector<uint16_t>(q_.size(), 0xFFFF)));
  FQ_RETURN_IF_ERROR(LaunchRopeOf(inputs, *rope));
  FQ_ASSIGN_OR_RETURN(Result result, Attend(kAttendBehindRope));
  const auto download = [](const void* from, std::vector<uint16_t>* to) {
    return cudaMemcpy(to->data(), from, to->size() * 2, cudaMemcpyDeviceToHost);
  };
  rope->rotated_q.resize(q_.size());
  FQ_RETURN_IF_CUDA_ERROR(download(q_device_.as<void>(), &rope->rotated_q));
  FQ_RETURN_IF_CUDA_ERROR(download(inputs[6].as<void>(), &rope->key_cache));
  FQ_RETURN_IF_CUDA_ERROR(
      download(inputs[6].as<uint16_t>() + rope->key_cache.size(), &rope->value_cache));
  return result;
}

// A call on poisoned outputs, whose queries are in q_device_.
absl::StatusOr<AttendCase::Result> AttendCase::Attend(int steps) {
  const AttendQueryLayout layout{options_.set->head_size()};
  Result result{std::vector<uint16_t>(q_.size()), std::vector<float>(rows()),
                std::vector<std::byte>(tasks_.size() * layout.Bytes())};
  FQ_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(out_.as<void>(), 0xFF, out_.bytes(), stream_));
  FQ_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(lse_.as<void>(), 0xFF, lse_.bytes(), stream_));
  const AttendInputs inputs = {q_device_.as<void>(),
                               pool_.as<std::byte>(),
                               pages_.as<uint32_t>(),
                               refinements_.as<uint32_t>(),
                               scale(),
                               out_.as<void>(),
                               lse_.as<float>()};
  FQ_RETURN_IF_ERROR(LaunchAttend(*kernel_, *workspace_, inputs, stream_, steps));
  FQ_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(result.out.data(), out_.as<void>(), out_.bytes(), cudaMemcpyDeviceToHost));
  FQ_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(result.lse.data(), lse_.as<void>(), lse_.bytes(), cudaMemcpyDeviceToHost));
  // Only what the kernels have written: initcheck watches.
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const bool written[] = {tasks_[i].record != nullptr, tasks_[i].refined != 0, true};
    const auto download = [&](int offset, int bytes) {
      const size_t at = i * layout.Bytes() + offset;
      return cudaMemcpy(result.queries.data() + at, workspace_->params().queries + at, bytes,
                        cudaMemcpyDeviceToHost);
    };
    for (int part = 0; part < 3; ++part) {
      if (!written[part]) continue;
      FQ_RETURN_IF_CUDA_ERROR(download(part * layout.Rows(), layout.Rows()));
    }
    if (written[0]) FQ_RETURN_IF_CUDA_ERROR(download(layout.First(), 512));
  }
  return result;
}

AttendCase::Rows AttendCase::DecodedRows(int sequence, int kv_head) const {
  const auto& pages = sequences_[sequence];
  const size_t d = options_.set->head_size();
  std::vector<size_t> first = {0};  // token of each page
  for (const Page& page : pages) first.push_back(first.back() + page.tokens);
  Rows rows;
  for (auto* values : {&rows.k, &rows.v, &rows.base, &rows.refinement}) {
    values->resize(first.back() * d);
  }
  rows.coded.resize(first.back());
  const size_t count = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < count; ++thread) {
    threads.emplace_back([&, thread] {
      for (size_t i = thread; i < pages.size(); i += count) {
        DecodePage(pages[i], slabs_[sequence][i], kv_head, first[i], &rows);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return rows;
}

void AttendCase::DecodePage(const Page& page, const Slab& slab, int kv_head, size_t token,
                            Rows* rows) const {
  const int d = options_.set->head_size();
  ReferencePage reference;
  reference.kind = page.kind;
  reference.head_size = d;
  reference.dtype = options_.dtype;
  reference.sink = page.sink;
  reference.codec_set = options_.set.get();
  reference.head = kv_head;
  size_t primary = 0, refinement = 0;
  for (int head = 0; head < kv_head; ++head) {
    const CodecProfile& profile = options_.set->profile(0, head);
    primary += PageBytes({page.kind, options_.dtype, d, page.sink}, &profile);
    refinement += PageBytes({PageKind::kRefinement, options_.dtype, d, page.sink}, &profile);
  }
  reference.primary = slab.primary.data() + primary;
  if (page.refined) reference.refinement = slab.refinement.data() + refinement;
  const std::vector<double> values = ReferenceRows(reference);
  const std::vector<float> coded = ReferenceCoded(reference);
  reference.refinement = nullptr;
  const std::vector<float> base = ReferenceCoded(reference);
  for (int i = 0; i < page.tokens * d; ++i) {
    const size_t to = token * d + i;
    rows->k[to] = values[i];
    rows->v[to] = values[kBlockTokens * d + i];
    rows->base[to] = base[i];
    rows->refinement[to] = static_cast<double>(coded[i]) - base[i];
  }
  for (int t = 0; t < page.tokens; ++t) {
    rows->coded[token + t] = page.kind == PageKind::kBase && !(page.sink && t < kSinkTokens);
  }
}

AttendedRow AttendCase::Expected(const Rows& rows, int row) const {
  const int d = options_.set->head_size();
  std::vector<float> q(d);
  for (int c = 0; c < d; ++c) q[c] = ElementValue(q_[static_cast<size_t>(row) * d + c]);
  return AttendReference(rows.k, rows.v, d, q.data(), scale());
}

// Scores in units of log(2).
std::vector<double> AttendCase::RoundedScores(const Rows& rows, int row,
                                              const Result& result) const {
  const int d = options_.set->head_size();
  const AttendQueryLayout layout{d};
  const std::byte* task = result.queries.data();
  int task_row = -1, head = HeadOf(row);
  for (size_t i = 0; task_row < 0; ++i) {
    const auto* end = tasks_[i].rows + kAttendRows;
    const auto* found = std::find(tasks_[i].rows, end, row);
    if (found == end) continue;
    task += i * layout.Bytes();
    task_row = static_cast<int>(found - tasks_[i].rows);
  }
  const auto element = [&](int part, int c) {
    uint16_t bits;
    std::memcpy(&bits, task + part + layout.Element(task_row, c), 2);
    return part == layout.Plain() ? ElementValue(bits) : HalfToFloat(bits);
  };
  const CodecProfile& profile = options_.set->profile(0, head);
  const HeadCodec& codec = options_.set->k(0, head);
  std::vector<double> plain(d), base(d), refinement(d);
  double mean = 0;
  for (int c = 0; c < d; ++c) {
    const double q = ElementValue(q_[static_cast<size_t>(row) * d + c]);
    mean += q * codec.mu[c] * scale() * kLog2E;
    const auto unit = [&](const std::vector<uint8_t>& classes) {
      return classes[c / kGroupChannels] == 8 ? kClass8Step : 1.0;
    };
    plain[c] = element(layout.Plain(), c) * scale() * kLog2E;
    base[c] = element(layout.Coded(0), c);
    if (c < 16) base[c] += element(layout.First(), 16 + c);
    base[c] /= unit(profile.k);
    if (codec.sd[c] != 0) {
      refinement[c] = element(layout.Coded(1), c) / (unit(profile.k_refinement) * codec.sd[c]);
    }
  }
  std::vector<double> scores;
  for (size_t t = 0; t < rows.coded.size(); ++t) {
    double score = rows.coded[t] ? mean : 0;
    for (int c = 0; c < d; ++c) {
      const size_t at = t * d + c;
      if (!rows.coded[t]) score += plain[c] * rows.k[at];
      if (rows.coded[t]) score += base[c] * rows.base[at];
      // A page without refinement must not see a query that was never written for one.
      if (rows.coded[t] && rows.refinement[at] != 0) score += refinement[c] * rows.refinement[at];
    }
    scores.push_back(score);
  }
  return scores;
}

AttendedRow AttendCase::ExpectedOfRounded(const Rows& rows, int row, const Result& result) const {
  const int d = options_.set->head_size();
  const std::vector<double> scores = RoundedScores(rows, row, result);
  AttendedRow expected{std::vector<double>(d), -std::numeric_limits<double>::infinity()};
  if (scores.empty()) return expected;
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (size_t t = 0; t < scores.size(); ++t) {
    const double weight = std::exp2(scores[t] - top);
    sum += weight;
    for (int c = 0; c < d; ++c) expected.out[c] += weight * rows.v[t * d + c];
  }
  for (double& value : expected.out) value /= sum;
  expected.lse = (top + std::log2(sum)) / kLog2E;
  return expected;
}

}  // namespace fq

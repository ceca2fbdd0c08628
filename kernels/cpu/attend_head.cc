#include "kernels/cpu/attend_head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/exact_rows.h"
#include "kernels/cpu/page_coder.h"
#include "kernels/cpu/sink_rows.h"
#include "kernels/cpu/universal_rows.h"
#include "kernels/page_bytes.h"

namespace fq {
namespace {

constexpr int kMatrix = kMaxHeadSize * kPageTokens;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Keys and values of some tokens of a page, [head_size][64] each, either as rows or in the coded
// domain.
struct Segment {
  const float* k;
  const float* v;
  int token_begin, token_end;
  bool coded;
};

// Online softmax of one query head. Sums of coded and of plain rows are kept apart until the end.
class QueryState {
 public:
  // `q` [head_size]; `k` may be null when no page is coded.
  void Start(const float* q, float scale, int head_size, const HeadCodec* k) {
    head_size_ = head_size;
    for (int c = 0; c < head_size; ++c) q_plain_[c] = q[c] * scale;
    std::fill_n(sum_plain_, head_size, 0.0f);
    std::fill_n(sum_coded_, head_size, 0.0f);
    if (k != nullptr) AbsorbKeyTransform(*k);
  }

  void Add(const Primitives& primitives, const Segment& segment) {
    alignas(64) float scores[kPageTokens];
    primitives.score(segment.coded ? q_coded_ : q_plain_, head_size_, segment.k, scores);
    const float offset = segment.coded ? q_mu_ : 0.0f;
    float page_max = max_;
    for (int t = segment.token_begin; t < segment.token_end; ++t) {
      scores[t] += offset;
      page_max = std::fmax(page_max, scores[t]);
    }
    const float decay = max_ == page_max ? 1.0f : std::exp(max_ - page_max);
    max_ = page_max;
    const float added = ToWeights(segment, scores);
    weight_ = weight_ * decay + added;
    coded_weight_ = coded_weight_ * decay + (segment.coded ? added : 0.0f);
    float* into = segment.coded ? sum_coded_ : sum_plain_;
    float* other = segment.coded ? sum_plain_ : sum_coded_;
    primitives.accumulate(scores, head_size_, segment.v, decay, into);
    if (decay != 1.0f) {
      for (int c = 0; c < head_size_; ++c) other[c] *= decay;
    }
  }

  // `v` may be null when no page was coded.
  void Finish(const HeadCodec* v, float* out, float* lse) const {
    *lse = weight_ == 0.0f ? kMinusInfinity : max_ + std::log(weight_);
    const float inverse = weight_ == 0.0f ? 0.0f : 1.0f / weight_;
    for (int i = 0; i < head_size_; ++i) {
      float sum = sum_plain_[i];
      if (v != nullptr) {
        sum += coded_weight_ * v->mu[i];
        const float* row = v->a_inv + i * head_size_;
        for (int c = 0; c < head_size_; ++c) sum += row[c] * sum_coded_[c];
      }
      out[i] = sum * inverse;
    }
  }

 private:
  void AbsorbKeyTransform(const HeadCodec& k) {
    std::fill_n(q_coded_, head_size_, 0.0f);
    for (int i = 0; i < head_size_; ++i) {
      q_mu_ += q_plain_[i] * k.mu[i];
      const float* row = k.a_inv + i * head_size_;
      for (int c = 0; c < head_size_; ++c) q_coded_[c] += q_plain_[i] * row[c];
    }
  }

  // Turns scores into exp(score - max); tokens outside the segment get weight 0. Returns the sum.
  float ToWeights(const Segment& segment, float* scores) const {
    float sum = 0.0f;
    for (int t = 0; t < kPageTokens; ++t) {
      const bool inside = t >= segment.token_begin && t < segment.token_end;
      scores[t] = inside ? std::exp(scores[t] - max_) : 0.0f;
      sum += scores[t];
    }
    return sum;
  }

  int head_size_ = 0;
  float q_mu_ = 0.0f;
  float max_ = kMinusInfinity, weight_ = 0.0f, coded_weight_ = 0.0f;
  alignas(64) float q_plain_[kMaxHeadSize];
  alignas(64) float q_coded_[kMaxHeadSize];
  alignas(64) float sum_plain_[kMaxHeadSize];
  alignas(64) float sum_coded_[kMaxHeadSize];
};

// The decoded pages of one task, one at a time.
class PageReader {
 public:
  PageReader(const Primitives& primitives, const Backend::Context& context, const AttendTask& task)
      : primitives_(primitives), context_(context), task_(task) {}

  // Calls visit(Segment) for the one or two segments of a page. A sink page has the rows of its
  // sink record, plain, and the rest, coded.
  template <typename Visitor>
  void Read(const AttendTask::Page& page, const Visitor& visit) {
    const int sink_end = page.sink ? std::min(page.tokens, kSinkRows) : 0;
    if (page.kind != PageKind::kBase) {
      ReadPlain(page, Side::kKey, k_);
      ReadPlain(page, Side::kValue, v_);
      visit(Segment{k_, v_, 0, page.tokens, false});
      return;
    }
    if (sink_end > 0) {
      const CodecProfile& profile = context_.codec_set->profile(task_.layer, task_.head);
      const std::byte* record = page.primary + CodeBytes(profile.k) + CodeBytes(profile.v);
      ReadSink(Side::kKey, record, k_);
      ReadSink(Side::kValue, record, v_);
      visit(Segment{k_, v_, 0, sink_end, false});
    }
    if (sink_end < page.tokens) {
      ReadCoded(page, Side::kKey, k_);
      ReadCoded(page, Side::kValue, v_);
      visit(Segment{k_, v_, sink_end, page.tokens, true});
    }
  }

 private:
  // Rows 16..63 stay whatever they were and get weight 0, so they must at least be finite.
  void ReadSink(Side side, const std::byte* record, float* x) const {
    std::fill_n(x, context_.head_size * kPageTokens, 0.0f);
    DecodeSinkRows(side, context_.head_size, record, x);
  }

  void ReadCoded(const AttendTask::Page& page, Side side, float* x) const {
    CodedSide coded = CodedSide::Of(*context_.codec_set, task_.layer, task_.head, side);
    coded.base = page.primary;
    coded.refinement = page.refinement;
    DecodeCoded(primitives_, coded, x);
  }

  void ReadPlain(const AttendTask::Page& page, Side side, float* x) const {
    const int d = context_.head_size;
    if (page.kind == PageKind::kExact) {
      const ExactShape shape{context_.dtype, d, page.tokens};
      primitives_.load_rows(ExactRows(side, shape, page.primary),
                            {context_.dtype, d, 0, page.tokens}, x);
      return;
    }
    DecodeUniversalLevels(side, d, page.primary, x);
    InverseUniversalRows(side, d, page.primary, x);
    if (page.sink) DecodeSinkRows(side, d, page.primary + UniversalPageBytes(d), x);
  }

  const Primitives& primitives_;
  const Backend::Context& context_;
  const AttendTask& task_;
  alignas(64) float k_[kMatrix];
  alignas(64) float v_[kMatrix];
};

}  // namespace

void AttendHead(const Primitives& primitives, const Backend::Context& context,
                const AttendTask& task) {
  const bool any_coded = std::any_of(task.pages.begin(), task.pages.end(),
                                     [](const auto& page) { return page.kind == PageKind::kBase; });
  const HeadCodec* k = any_coded ? &context.codec_set->k(task.layer, task.head) : nullptr;
  const HeadCodec* v = any_coded ? &context.codec_set->v(task.layer, task.head) : nullptr;
  const int d = context.head_size;
  QueryState states[kMaxQueryHeads];
  for (int i = 0; i < task.q_heads; ++i) states[i].Start(task.q + i * d, task.scale, d, k);
  PageReader reader(primitives, context, task);
  for (const AttendTask::Page& page : task.pages) {
    reader.Read(page, [&](const Segment& segment) {
      for (int i = 0; i < task.q_heads; ++i) states[i].Add(primitives, segment);
    });
  }
  for (int i = 0; i < task.q_heads; ++i) states[i].Finish(v, task.out + i * d, task.lse + i);
}

}  // namespace fq

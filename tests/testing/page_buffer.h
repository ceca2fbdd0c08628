// Rows of one side of a page in memory as an engine may hold them: any element type, either stride
// order, scattered over chunks, with guard bytes around. For tests; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/element.h"
#include "kernels/cpu/row_address.h"
#include "kernels/params.h"

namespace fq {

// How the rows lie in memory.
struct BufferLayout {
  bool channel_major = false;  // vLLM's K^T on CPU: tokens of a channel are neighbours
  int tokens_per_chunk = kBlockTokens;
  int first_token = 0;
  int gap = 0;  // elements between rows (or between channels)
};

class PageBuffer {
 public:
  static constexpr std::byte kGuard{0xA5};

  PageBuffer(DType dtype, int head_size, const BufferLayout& layout)
      : dtype_(dtype), head_size_(head_size), layout_(layout) {
    const int chunks =
        (layout.first_token + kBlockTokens + layout.tokens_per_chunk - 1) / layout.tokens_per_chunk;
    const size_t elements = layout.channel_major
                                ? size_t(head_size) * (layout.tokens_per_chunk + layout.gap)
                                : size_t(layout.tokens_per_chunk) * (head_size + layout.gap);
    chunks_.assign(chunks, std::vector<std::byte>(elements * ElementBytes(dtype), kGuard));
  }

  SourceRows source() const { return View<const std::byte>(chunks_); }
  TargetRows target() { return View<std::byte>(chunks_); }

  void Set(int token, int channel, float value) {
    StoreElement(dtype_, value, Address(target(), token, channel));
  }
  float Get(int token, int channel) const {
    return LoadElement(dtype_, Address(source(), token, channel));
  }

  // Bytes that still are the guard, over all chunks.
  size_t GuardBytes() const {
    size_t count = 0;
    for (const auto& chunk : chunks_) {
      for (std::byte byte : chunk) count += byte == kGuard;
    }
    return count;
  }
  size_t Bytes() const { return chunks_.size() * chunks_[0].size(); }

 private:
  template <typename Byte, typename Chunks>
  Rows<Byte> View(Chunks& chunks) const {
    Rows<Byte> rows;
    for (size_t i = 0; i < chunks.size(); ++i) rows.chunks[i] = chunks[i].data();
    rows.tokens_per_chunk = layout_.tokens_per_chunk;
    rows.first_token = layout_.first_token;
    rows.token_stride = layout_.channel_major ? 1 : head_size_ + layout_.gap;
    rows.channel_stride = layout_.channel_major ? layout_.tokens_per_chunk + layout_.gap : 1;
    return rows;
  }

  template <typename Byte>
  Byte* Address(const Rows<Byte>& rows, int token, int channel) const {
    const int bytes = ElementBytes(dtype_);
    return RowAddress(rows, token, bytes) + channel * rows.channel_stride * bytes;
  }

  const DType dtype_;
  const int head_size_;
  const BufferLayout layout_;
  std::vector<std::vector<std::byte>> chunks_;
};

}  // namespace fq

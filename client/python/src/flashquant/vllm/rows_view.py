"""K and V rows of an engine's KV cache on a GPU, whatever the order of its dimensions (VLLM.md 6).

A chunk is a kernel block of one layer. Nothing here views or reshapes a tensor of the engine:
all follows from its strides. Needs torch, no vllm; runs on CPU tensors too.
"""

from dataclasses import dataclass

import numpy as np
import torch

from flashquant.device_segment import LayerMemory
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.cache_view import WORD_BYTES, expand_ids
from flashquant.vllm.geometry import ChunkShape

CHUNK_ALIGNMENT = 256  # of chunk offsets in device segments (proto/segment_socket.md)
ROW_ALIGNMENT = 16


@dataclass(frozen=True)
class Rows:
    """One layer: strided views [chunks][heads][tokens][head size] of K and of V."""

    k: torch.Tensor
    v: torch.Tensor

    @property
    def v_offset(self) -> int:
        """Bytes from an element of K to that of V."""
        return self.v.data_ptr() - self.k.data_ptr()

    def strides(self) -> tuple[int, ...]:
        """In bytes: chunk, head, token, channel; and the distance of V."""
        return (*(s * self.k.element_size() for s in self.k.stride()), self.v_offset)

    def memory(self) -> LayerMemory:
        """From the first row of K to the end of the last row of V."""
        size = self.k.element_size()
        reach = sum((n - 1) * s for n, s in zip(self.k.shape, self.k.stride())) + 1
        return LayerMemory(self.k.data_ptr(), reach * size + max(0, self.v_offset))


def rows_of(tensor: torch.Tensor, blocks: int, heads: int, head_size: int) -> Rows:
    """Rows of a layer's tensor: (B, H, N, 2 D), (2, B, N, H, D) or (B, 2, N, H, D).

    B is a multiple of `blocks`, the blocks of vLLM's manager. ValueError for any other shape.
    """
    shape = tuple(tensor.shape)
    if len(shape) == 4 and (shape[1], shape[3]) == (heads, 2 * head_size):
        rows = Rows(tensor[..., :head_size], tensor[..., head_size:])
    elif len(shape) == 5 and shape[3:] == (heads, head_size) and shape[:2] != (2, 2):
        part = next((dim for dim in (0, 1) if shape[dim] == 2), None)
        if part is None:
            raise ValueError(f"FlashQuant: KV tensor of shape {shape}: no dimension of K and V")
        rows = Rows(*(half.permute(0, 2, 1, 3) for half in tensor.unbind(part)))
    else:
        raise ValueError(f"FlashQuant: KV tensor of shape {shape} is neither (B, {heads}, N, "
                         f"{2 * head_size}) nor (2, B, N, {heads}, {head_size}) nor "
                         f"(B, 2, N, {heads}, {head_size})")
    if rows.k.shape[0] % blocks:
        raise ValueError(f"FlashQuant: {rows.k.shape[0]} kernel blocks for {blocks} blocks")
    return rows


class RowsView:
    """As CacheView, over rows; staging holds chunks packed as rows_packing()."""

    def __init__(self, tensors: list[torch.Tensor], blocks: int, heads: int,
                 head_size: int) -> None:
        """`tensors`: in layer order. ValueError when they cannot be viewed."""
        self.rows = [rows_of(tensor, blocks, heads, head_size) for tensor in tensors]
        shapes = {tuple(rows.k.shape) for rows in self.rows}
        if len(shapes) != 1:
            raise ValueError(f"FlashQuant: layers with different KV shapes: {shapes}")
        (chunks, _, tokens, _), = shapes
        self._dtype, self._device = tensors[0].dtype, tensors[0].device
        self.shape = ChunkShape(tokens, heads, head_size, tensors[0].element_size())
        self.layers, self.chunks_per_block = len(tensors), chunks // blocks
        self._stream = torch.cuda.Stream(self._device) if tensors[0].is_cuda else None

    @property
    def words(self) -> int:
        """Of one chunk of one layer in staging."""
        return self.shape.chunk_bytes // WORD_BYTES

    def chunk_ids(self, block_ids: list[int]) -> np.ndarray:
        """Chunks of these blocks of vLLM's manager, in token order; int64."""
        return expand_ids(block_ids, self.chunks_per_block)

    def gather(self, ids: np.ndarray, out: torch.Tensor) -> torch.cuda.Event | None:
        """Copies chunks `ids` of all layers to `out` [layers][len(ids)][words], in the order of
        the current stream; wait for the event before `out` is read."""
        index = self._index(ids)
        for rows, target in zip(self.rows, self._staged(out)):
            chunks = torch.stack([rows.k.index_select(0, index), rows.v.index_select(0, index)], 3)
            target.copy_(chunks, non_blocking=True)
        if self._stream is None:
            return None
        event = torch.cuda.Event(blocking=True)
        event.record()
        return event

    def scatter(self, ids: np.ndarray, source: torch.Tensor) -> None:
        """Copies `source` [layers][len(ids)][words] to chunks `ids` of all layers; returns when
        they are there. The engine's stream must be done with those chunks."""
        if self._stream is None:
            self._scatter(ids, source)
            return
        with torch.cuda.stream(self._stream):
            self._scatter(ids, source)
        self._stream.synchronize()

    def _scatter(self, ids: np.ndarray, source: torch.Tensor) -> None:
        index = self._index(ids)
        for rows, staged in zip(self.rows, self._staged(source)):
            chunks = staged.to(self._device, non_blocking=True)
            rows.k.index_copy_(0, index, chunks[..., 0, :])
            rows.v.index_copy_(0, index, chunks[..., 1, :])

    def _index(self, ids: np.ndarray) -> torch.Tensor:
        """On the cache's device; does not wait for what its stream does."""
        return torch.from_numpy(ids).to(self._device, non_blocking=True)

    def _staged(self, words: torch.Tensor) -> torch.Tensor:
        """Staging as [layers][chunks][heads][tokens][K or V][head size]."""
        shape = self.shape
        return words.view(self._dtype).view(*words.shape[:2], shape.heads, shape.tokens, 2,
                                            shape.head_size)

    def device_layout(self) -> pb.PageLayout:
        """Layout of the engine's own pages in a device segment of `memory()`.

        ValueError says why the node could not address them.
        """
        layouts = {rows.strides() for rows in self.rows}
        if len(layouts) != 1:
            raise ValueError("layers with different strides")
        (chunk, head, token, channel, v_offset), = layouts
        if channel != self.shape.element_bytes:
            raise ValueError(f"channels are {channel} bytes apart")
        if chunk % CHUNK_ALIGNMENT or head % ROW_ALIGNMENT or token % ROW_ALIGNMENT:
            raise ValueError(f"strides of {chunk} (chunk), {head} (head), {token} (token) bytes "
                             f"are not multiples of {CHUNK_ALIGNMENT}, {ROW_ALIGNMENT}, "
                             f"{ROW_ALIGNMENT}")
        if v_offset < 0 or v_offset % ROW_ALIGNMENT:
            raise ValueError(f"V lies {v_offset} bytes behind K")
        return pb.PageLayout(
            tokens_per_chunk=self.shape.tokens, layer_stride=0, head_stride=head, k_offset=0,
            k_token_stride=token, k_channel_stride=channel, v_offset=v_offset,
            v_token_stride=token, v_channel_stride=channel)

    @property
    def chunk_stride(self) -> int:
        """Bytes from a chunk to the next, in the engine's memory."""
        return self.rows[0].strides()[0]

    def memory(self) -> list[LayerMemory]:
        """Where the engine's pages are, layer by layer."""
        return [rows.memory() for rows in self.rows]

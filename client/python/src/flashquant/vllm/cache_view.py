"""Whole-chunk copies between an engine's KV cache and staging memory. Needs torch, no vllm.

A chunk is a kernel block: a contiguous piece of one layer's tensor. Copies move bytes as they are,
or, where the engine keeps a head in no order that strides describe, element by element.
Not synchronised: the caller makes sure that nobody else touches the same chunks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from flashquant.vllm.geometry import ChunkShape

WORD = torch.int64  # unit of the copies
WORD_BYTES = 8


@dataclass(frozen=True)
class CacheView:
    """`parts`: [layers of the part][chunks][words of a chunk], in layer order, over the cache.

    One part when the layers lie in one storage at equal distances, else one per layer.
    """

    parts: tuple[torch.Tensor, ...]
    shape: ChunkShape
    layers: int
    chunks_per_block: int  # kernel blocks per block of vLLM's manager

    @property
    def words(self) -> int:
        """Of one chunk of one layer."""
        return self.shape.chunk_bytes // WORD_BYTES

    def chunk_ids(self, block_ids: list[int]) -> np.ndarray:
        """Chunks of these blocks of vLLM's manager, in token order; int64."""
        return expand_ids(block_ids, self.chunks_per_block)

    def gather(self, ids: np.ndarray, out: torch.Tensor) -> None:
        """Copies chunks `ids` of all layers to `out` [layers][len(ids)][words]."""
        for begin, part in self._layers():
            target = out[begin:begin + part.shape[0]]
            for at, first, count in runs_of(ids):
                target[:, at:at + count].copy_(part[:, first:first + count])

    def scatter(self, ids: np.ndarray, source: torch.Tensor) -> None:
        """Copies `source` [layers][len(ids)][words] to chunks `ids` of all layers."""
        for begin, part in self._layers():
            rows = source[begin:begin + part.shape[0]]
            for at, first, count in runs_of(ids):
                part[:, first:first + count].copy_(rows[:, at:at + count])

    def _layers(self) -> Iterable[tuple[int, torch.Tensor]]:
        begin = 0
        for part in self.parts:
            yield begin, part
            begin += part.shape[0]


@dataclass(frozen=True)
class OrderedView(CacheView):
    """Staged heads have another order than the engine's: see Packing.order. On a CPU only."""

    order: np.ndarray    # [2 N D], int64: which element of the engine's head comes i-th
    inverse: np.ndarray  # of it

    def gather(self, ids: np.ndarray, out: torch.Tensor) -> None:
        """As CacheView."""
        for layer, cache in enumerate(self._caches()):
            heads = self._heads(out[layer])
            for at, first, count in runs_of(ids):
                np.take(cache[first:first + count], self.order, axis=-1,
                        out=heads[at:at + count], mode="clip")  # "raise" would copy `out`

    def scatter(self, ids: np.ndarray, source: torch.Tensor) -> None:
        """As CacheView."""
        for layer, cache in enumerate(self._caches()):
            heads = self._heads(source[layer])
            for at, first, count in runs_of(ids):
                cache[first:first + count] = np.take(heads[at:at + count], self.inverse, axis=-1,
                                                     mode="clip")

    def _caches(self) -> Iterable[np.ndarray]:
        """Each layer of the cache."""
        for _, part in self._layers():
            yield from map(self._heads, part)

    def _heads(self, chunks: torch.Tensor) -> np.ndarray:
        """[chunks][words] as elements, [chunks][heads][2 N D]."""
        elements = chunks.numpy().view(f"u{self.shape.element_bytes}")
        return elements.reshape(len(chunks), self.shape.heads, self.shape.head_elements)


def expand_ids(block_ids: list[int], chunks_per_block: int) -> np.ndarray:
    """Chunks of these blocks of vLLM's manager, in order; int64."""
    ids = np.asarray(block_ids, dtype=np.int64)
    if chunks_per_block == 1:
        return ids
    return (ids[:, None] * chunks_per_block + np.arange(chunks_per_block)).ravel()


def runs_of(ids: np.ndarray) -> list[tuple[int, int, int]]:
    """(position, first id, count) of each stretch of consecutive ids."""
    if len(ids) == 0:
        return []
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    counts = np.diff(starts, append=len(ids))
    return list(zip(starts.tolist(), ids[starts].tolist(), counts.tolist()))


def chunk_shape(tensor: torch.Tensor) -> ChunkShape:
    """Of a layer's tensor [chunks][heads][tokens][2 * head_size]. ValueError for any other."""
    if tensor.dim() != 4 or tensor.shape[-1] % 2 or not tensor[0].is_contiguous():
        raise ValueError(f"FlashQuant: KV tensor of shape {tuple(tensor.shape)}, strides "
                         f"{tuple(tensor.stride())}: needs contiguous blocks "
                         "[heads][tokens][2 * head size]")
    _, heads, tokens, content = tensor.shape
    return ChunkShape(tokens, heads, content // 2, tensor.element_size())


def words_view(tensor: torch.Tensor, layers: int, layer_stride_bytes: int) -> torch.Tensor:
    """[layers][chunks][words] over a storage whose first layer is `tensor`."""
    chunk_words = tensor[0].numel() * tensor.element_size() // WORD_BYTES
    block_words = tensor.stride(0) * tensor.element_size() // WORD_BYTES
    flat = torch.empty(0, dtype=WORD).set_(tensor.untyped_storage())
    offset = tensor.storage_offset() * tensor.element_size() // WORD_BYTES
    return flat.as_strided((layers, tensor.shape[0], chunk_words),
                           (layer_stride_bytes // WORD_BYTES, block_words, 1), offset)


def layer_stride(tensors: list[torch.Tensor]) -> int | None:
    """Distance of the layers in bytes, when all lie in one storage at equal distances."""
    begins = [t.data_ptr() for t in tensors]
    if len({t.untyped_storage().data_ptr() for t in tensors}) > 1 or len(tensors) == 1:
        return None
    step = begins[1] - begins[0]
    equal = all(b - a == step for a, b in zip(begins, begins[1:]))
    return step if equal and step > 0 and len({t.stride() for t in tensors}) == 1 else None


def view_of(tensors: list[torch.Tensor], manager_blocks: int,
            order: tuple[int, ...] = ()) -> CacheView:
    """View of an engine's layers, in layer order; `order`: Packing.order. ValueError when they
    cannot be viewed."""
    shapes = {(chunk_shape(t), t.shape[0]) for t in tensors}
    if len(shapes) != 1:
        raise ValueError(f"FlashQuant: layers with different KV shapes: {shapes}")
    (shape, chunks), = shapes
    if chunks % manager_blocks or shape.chunk_bytes % WORD_BYTES:
        raise ValueError(f"FlashQuant: {chunks} kernel blocks of {shape.chunk_bytes} bytes for "
                         f"{manager_blocks} blocks")
    stride = layer_stride(tensors)
    if stride is None or stride % WORD_BYTES:
        parts = tuple(words_view(t, 1, WORD_BYTES) for t in tensors)
    else:
        parts = (words_view(tensors[0], len(tensors), stride),)
    view = CacheView(parts, shape, len(tensors), chunks // manager_blocks)
    if not order:
        return view
    places = np.asarray(order, dtype=np.int64)
    return OrderedView(parts, shape, view.layers, view.chunks_per_block, places,
                       np.argsort(places))

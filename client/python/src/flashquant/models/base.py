"""What calibration and evaluation need from a model, and attention over coded rows.

Shapes: T tokens, D hidden size, L layers, H query heads, G kv heads, d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# (layer, K rows [G, T, d] after RoPE, V rows [G, T, d]) -> the rows that far queries see instead.
Rows = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Window:
    """Which rows stay raw: the first `sinks` tokens and at least the last `recent` ones.

    Queries run in chunks of `chunk` tokens, as an engine that codes a page when it is full; so a
    query sees `recent` to `recent + chunk` raw tokens behind it.
    """

    sinks: int = 16
    recent: int = 128
    chunk: int = 64

    def far_end(self, chunk_begin: int) -> int:
        """End (exclusive) of the coded rows that the chunk at `chunk_begin` sees."""
        return max(self.sinks, (chunk_begin - self.recent) // self.chunk * self.chunk)


class Model(Protocol):
    """A decoder whose K and V rows can be replaced. Weights are constant; positions start at 0."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_tokens: int
    device: str

    def embed(self, ids: Tensor) -> Tensor:
        """ids [T], on any device -> input of layer 0, [T, D] FP32, on `device`."""

    def layer(self, index: int, x: Tensor, rows: Rows, window: Window) -> Tensor:
        """x [T, D] -> output of layer `index`, [T, D]; far queries see what `rows` returns."""

    def final_norm(self, x: Tensor) -> Tensor:
        """Output of the last layer [T, D] -> input of the vocabulary head."""

    def head_weight(self) -> Tensor:
        """Weight of the vocabulary head, [vocabulary, D]."""


def same_rows(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The `Rows` of an uncompressed cache."""
    del layer
    return k, v


def hidden_states(model: Model, ids: Tensor, rows: Rows = same_rows,
                  window: Window = Window()) -> Tensor:
    """Normed hidden states [T, D] of `ids` [T] while attention runs over `rows`."""
    x = model.embed(ids)
    for index in range(model.layers):
        x = model.layer(index, x, rows, window)
    return model.final_norm(x)


def _chunk_mask(rows: int, columns: int, repeat: int, like: Tensor) -> Tensor:
    """Additive causal mask [repeat * rows, columns] whose last `rows` columns are triangular."""
    mask = torch.zeros(rows, columns, dtype=like.dtype, device=like.device)
    future = torch.full((rows, rows), float("-inf"), dtype=like.dtype, device=like.device)
    mask[:, columns - rows:] = future.triu(1)
    return mask.repeat(repeat, 1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, far: tuple[Tensor, Tensor],
                       window: Window) -> Tensor:
    """Causal attention in which each chunk of queries sees sinks and recent rows raw, others coded.

    q [H, T, d]; k, v and both of `far` [G, T, d]; all of one type. Returns [H, T, d].
    """
    heads, tokens, size = q.shape
    kv_heads = k.shape[0]
    repeat = heads // kv_heads
    out = []
    for begin in range(0, tokens, window.chunk):
        end = min(begin + window.chunk, tokens)
        low = window.far_end(begin)
        keys, values = (
            torch.cat([raw[:, :window.sinks], coded[:, window.sinks:low], raw[:, low:end]], 1)
            if low > window.sinks else raw[:, :end]
            for raw, coded in ((k, far[0]), (v, far[1])))
        queries = q[:, begin:end].reshape(1, kv_heads, repeat * (end - begin), size)
        mask = _chunk_mask(end - begin, end, repeat, q)
        part = F.scaled_dot_product_attention(queries, keys[None], values[None],
                                              attn_mask=mask[None, None])
        out.append(part.reshape(heads, end - begin, size))
    return torch.cat(out, 1)

"""What calibration and evaluation need from a model, and attention over coded rows.

Shapes: T tokens, D hidden size, L layers, H query heads, G kv heads, d head size, N sequences of
one length that are run together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Device = str | torch.device
# K, V [..., G, P, d] of the P tokens before those that a layer is run on, of the matrices' type.
Past = tuple[Tensor, Tensor]
# (layer, K rows [G, T, d] after RoPE, V rows [G, T, d]) -> the rows that far queries see instead.
# Of N sequences that are run together: [N, G, T, d].
Rows = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# What attention gives [..., H, T, d], before the matrix behind it -> what that sees instead.
Attended = Callable[[Tensor], Tensor]


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


def as_it_is(x: Tensor) -> Tensor:
    """The `Attended` that changes nothing."""
    return x


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
        """ids [..., T], on any device -> input of layer 0, [..., T, D] FP32, on `device`."""

    def layer(self, index: int, x: Tensor, rows: Rows, window: Window,
              past: Past | None = None, attended: Attended = as_it_is) -> Tensor:
        """x [..., T, D] -> output of layer `index`, the same; far queries see what `rows` returns
        for the P rows of `past` and the T of x. P must be a multiple of the window's chunk.
        `attended`: see `Attended`."""

    def final_norm(self, x: Tensor) -> Tensor:
        """Output of the last layer [..., T, D] -> input of the vocabulary head."""

    def head_weight(self) -> Tensor:
        """Weight of the vocabulary head, [vocabulary, D]."""


def same_rows(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The `Rows` of an uncompressed cache."""
    del layer
    return k, v


def hidden_states(model: Model, ids: Tensor, rows: Rows = same_rows,
                  window: Window = Window(), past: list[Past] | None = None) -> Tensor:
    """Normed hidden states [..., T, D] of `ids` [..., T] while attention runs over `rows`; `past`:
    of every layer. ValueError if there are more tokens than positions."""
    total = ids.shape[-1] + (past[0][0].shape[-2] if past else 0)
    if total > model.context_tokens:
        raise ValueError(f"{total} tokens, but the model has {model.context_tokens}")
    x = model.embed(ids)
    for index in range(model.layers):
        x = model.layer(index, x, rows, window, past[index] if past else None)
    return model.final_norm(x)


def past_of(model: Model, ids: Tensor) -> list[Past]:
    """K and V of every layer for `ids` [..., P], raw."""
    found: list[Past] = []
    dtype = model.head_weight().dtype

    def record(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        found.append((k.to(dtype), v.to(dtype)))
        return same_rows(layer, k, v)

    hidden_states(model, ids, record)
    return found


@lru_cache(maxsize=4)
def window_mask(tokens: int, window: Window, device: Device, sliding: int | None = None) -> Tensor:
    """Which of the columns [raw rows, coded rows] the queries see: bool [tokens, 2 tokens].

    `sliding`: tokens that a query of this layer sees at all, itself included; None for all.
    """
    query = torch.arange(tokens, device=device)[:, None]
    column = torch.arange(tokens, device=device)[None]
    low = torch.tensor([window.far_end(begin) for begin in range(0, tokens, window.chunk)])
    low = low.repeat_interleave(window.chunk)[:tokens, None].to(device)
    seen = column <= query
    if sliding is not None:
        seen &= column > query - sliding
    coded = (column >= window.sinks) & (column < low)
    return torch.cat([seen & ~coded, seen & coded], 1)


def joined_attention(q: Tensor, k: Tensor, v: Tensor, far: tuple[Tensor, Tensor],
                     mask: Tensor) -> Tensor:
    """Attention of all queries at once over raw and coded rows; `mask` as from `window_mask`.
    Shapes as in `windowed_attention`, with N in front.

    One launch instead of one for each chunk, for twice the work: for devices, where launches cost.
    """
    repeat = q.shape[1] // k.shape[1]
    keys, values = (torch.cat([raw, coded], 2).repeat_interleave(repeat, 1)
                    for raw, coded in ((k, far[0]), (v, far[1])))
    return F.scaled_dot_product_attention(q, keys, values,
                                          attn_mask=mask[None, None, -q.shape[2]:])


def _chunk_mask(begin: int, end: int, first: int, sliding: int | None, device: Device) -> Tensor:
    """Rows first..end that the queries begin..end see: bool [end - begin, end - first]."""
    query = torch.arange(begin, end, device=device)[:, None]
    column = torch.arange(first, end, device=device)[None]
    seen = column <= query
    return seen if sliding is None else seen & (column > query - sliding)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, far: tuple[Tensor, Tensor], window: Window,
                      sliding: int | None = None) -> Tensor:
    """As `joined_attention`, chunk by chunk of queries: no work on columns that are masked."""
    count, heads, queried, size = q.shape
    kv_heads, tokens = k.shape[1:3]
    past = tokens - queried
    out = []
    for begin in range(past, tokens, window.chunk):
        end = min(begin + window.chunk, tokens)
        first = 0 if sliding is None else max(0, begin - sliding + 1)
        sinks, low = max(window.sinks, first), window.far_end(begin)
        keys, values = (
            torch.cat([raw[:, :, first:sinks], coded[:, :, sinks:low],
                       raw[:, :, max(low, sinks):end]], 2)
            if low > sinks else raw[:, :, first:end]
            for raw, coded in ((k, far[0]), (v, far[1])))
        queries = q[:, :, begin - past:end - past].reshape(count, kv_heads, -1, size)
        mask = _chunk_mask(begin, end, first, sliding, q.device).repeat(heads // kv_heads, 1)
        part = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[None, None])
        out.append(part.reshape(count, heads, end - begin, size))
    return torch.cat(out, 2)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, far: tuple[Tensor, Tensor], window: Window,
                       sliding: int | None = None) -> Tensor:
    """Causal attention in which each chunk of queries sees sinks and recent rows raw, others coded.

    q [..., H, T, d], of the last T rows; k, v and both of `far` [..., G, P + T, d], P whole chunks;
    all of one type. Returns [..., H, T, d].
    """
    shape = q.shape
    q, k, v, *far = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v, *far))
    if q.device.type == "cpu":
        found = chunked_attention(q, k, v, tuple(far), window, sliding)
    else:
        mask = window_mask(k.shape[2], window, q.device, sliding)
        found = joined_attention(q, k, v, tuple(far), mask)
    return found.view(shape)

"""Codecs by name, as the `Rows` that a model's far queries see."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flashquant.codec import PAGE_TOKENS, SINK_TOKENS, RowCodec, row_codecs
from flashquant.codec_set import CodecSet
from flashquant.evaluate.calibrated_rivals import BalancedTransform, PrincipalComponents
from flashquant.evaluate.sizes import RAW_BYTES, interior_ratio
from flashquant.models import Model, Rows
from flashquant.rivals import RIVALS

FQ_NAMES = ("compact", "near-lossless")
CALIBRATED_RIVALS = ("pca", "wush-lm2")
CODEC_NAMES = (*FQ_NAMES, *RIVALS, *CALIBRATED_RIVALS)
INT8_LARGEST = 127


@dataclass(frozen=True)
class NamedCodec:
    """`bits`: codes and scales per value. `stored_bits`: with checksums and slab headers too.
    `joined`: number of tokens (whole blocks) -> the same for sequences of that many, one behind
    the other; None: code them one by one. The first 16 rows of each are for the user to replace."""

    name: str
    rows: Rows
    bits: float
    stored_bits: float
    joined: Callable[[int], Rows] | None = None

    def together(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` of N sequences, K, V [N, G, T, d]: in one piece where that is the same."""
        count, _, tokens, _ = k.shape
        if self.joined is None or tokens % PAGE_TOKENS:
            k, v = (torch.stack(column) for column in zip(
                *(self.rows(layer, *pair) for pair in zip(k, v))))
            return k, v
        both = (x.transpose(0, 1).flatten(1, 2) for x in (k, v))
        k, v = (x.unflatten(1, (count, tokens)).transpose(0, 1)
                for x in self.joined(tokens)(layer, *both))
        return k, v


def sink_rows(x: Tensor) -> Tensor:
    """Rows [..., d] after a trip through the sink record (FORMAT.md section 5), FP32."""
    scale = x.abs().amax(-1, keepdim=True) / INT8_LARGEST
    scale = torch.where(scale == 0, 1.0, scale)
    return (x / scale).round().clamp(-INT8_LARGEST, INT8_LARGEST) * scale


class CodecSetRows:
    """Rows after a trip through base pages, and refinement pages if `refined`. The first 16 rows
    are coded as if empty, as in a sink block; whoever uses the result replaces them."""

    def __init__(self, codec_set: CodecSet, refined: bool,
                 device: str | torch.device = "cpu") -> None:
        self._refined = refined
        self._codecs = [[row_codecs(codec_set, layer, head, device)
                         for head in range(codec_set.kv_heads)]
                        for layer in range(codec_set.layers)]

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [G, T, d] FP32 -> what a load delivers, FP32."""
        return self._sequences(k.shape[1], layer, k, v)

    def joined(self, tokens: int) -> Rows:
        """See `NamedCodec`."""
        return partial(self._sequences, tokens)

    def _sequences(self, tokens: int, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of `tokens` rows, one behind the other; whole blocks if there are several."""
        k, v = (torch.stack([self._one(pair[which], x, tokens)
                             for pair, x in zip(self._codecs[layer], rows)])
                for which, rows in enumerate((k, v)))
        return k, v

    def _one(self, codec: RowCodec, x: Tensor, sequence: int) -> Tensor:
        tokens = len(x)
        padded = F.pad(codec.components(x), (0, 0, 0, -tokens % PAGE_TOKENS))
        place = torch.arange(len(padded), device=x.device)
        blank = (place % sequence < SINK_TOKENS) | (place >= tokens)
        if self._refined:
            values = codec.values(*codec.encode(padded, blank))
        else:
            values = codec.base.decode(codec.base.encode(padded.masked_fill(blank[:, None], 0.0)))
        return codec.rows(values[:tokens])


def make_codec(name: str, codec_set: CodecSet | None, head_size: int,
               device: str | torch.device = "cpu") -> NamedCodec:
    """The codec called `name`; ValueError if it is unknown or needs a codec set and has none."""
    if name in RIVALS:
        rival = RIVALS[name]
        bits = rival.bits(head_size)
        return _of_rows(name, lambda _, k, v: rival.apply(k, v), bits, rival.by_row)
    if name not in CODEC_NAMES:
        raise ValueError(f"codec {name!r} is unknown; known: {', '.join(CODEC_NAMES)}")
    if codec_set is None:
        raise ValueError(f"codec {name!r} needs a codec set (--codec-set)")
    if name == "pca":
        components = PrincipalComponents(codec_set, device)
        return _of_rows(name, components, components.bits)
    if name == "wush-lm2":
        balanced = BalancedTransform(codec_set, 2, device)
        return _of_rows(name, balanced, balanced.bits)
    refined = name == "near-lossless"
    rows = CodecSetRows(codec_set, refined, device)
    return NamedCodec(name, rows, codec_set.bits_per_value(refined),
                      8 * RAW_BYTES / interior_ratio(codec_set, refined), rows.joined)


def _of_rows(name: str, rows: Rows, bits: float, by_row: bool = True) -> NamedCodec:
    """A codec that codes each row by itself, unless told otherwise, and stores nothing else."""
    return NamedCodec(name, rows, bits, bits, (lambda _: rows) if by_row else None)


def check_fits(codec_set: CodecSet, model: Model) -> None:
    """ValueError if `codec_set` was made for another shape than `model` has."""
    for field in ("layers", "kv_heads", "head_size"):
        found, wanted = getattr(codec_set, field), getattr(model, field)
        if found != wanted:
            raise ValueError(f"{field}: the codec set has {found}, the model {wanted}")

"""Codecs by name, as the `Rows` that a model's far queries see."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashquant.codec import PAGE_TOKENS, SINK_TOKENS, RowCodec, row_codecs
from flashquant.codec_set import CodecSet
from flashquant.models import Model, Rows
from flashquant.rivals import RIVALS

FQ_NAMES = ("compact", "near-lossless")
CODEC_NAMES = (*FQ_NAMES, *RIVALS)
PAGE_CHECKSUM_BYTES = 8
SLAB_HEADER_BYTES = 128
ALIGNMENT = 64


@dataclass(frozen=True)
class NamedCodec:
    """`bits`: codes and scales per value. `stored_bits`: with checksums and slab headers too."""

    name: str
    rows: Rows
    bits: float
    stored_bits: float


def slab_bytes(codec_set: CodecSet, refined: bool) -> int:
    """Bytes of one interior block of the whole model: one extent, or two if `refined`."""
    pages = codec_set.layers * codec_set.kv_heads
    head = SLAB_HEADER_BYTES + PAGE_CHECKSUM_BYTES * pages
    head += -head % ALIGNMENT
    values = pages * 2 * codec_set.head_size * PAGE_TOKENS
    return round(codec_set.bits_per_value(refined) * values / 8) + head * (2 if refined else 1)


class CodecSetRows:
    """Rows after a trip through base pages, and refinement pages if `refined`."""

    def __init__(self, codec_set: CodecSet, refined: bool) -> None:
        self._refined = refined
        self._codecs = [[row_codecs(codec_set, layer, head) for head in range(codec_set.kv_heads)]
                        for layer in range(codec_set.layers)]

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [G, T, d] FP32 -> what a load delivers, FP32."""
        codecs = self._codecs[layer]
        return (torch.stack([self._one(pair[0], x) for pair, x in zip(codecs, k)]),
                torch.stack([self._one(pair[1], x) for pair, x in zip(codecs, v)]))

    def _one(self, codec: RowCodec, x: Tensor) -> Tensor:
        tokens = len(x)
        padded = F.pad(codec.components(x), (0, 0, 0, -tokens % PAGE_TOKENS))
        blank = torch.zeros(len(padded), dtype=torch.bool)
        blank[:SINK_TOKENS] = True
        blank[tokens:] = True
        if self._refined:
            values = codec.values(*codec.encode(padded, blank))
        else:
            values = codec.base.decode(codec.base.encode(padded.masked_fill(blank[:, None], 0.0)))
        return codec.rows(values[:tokens])


def make_codec(name: str, codec_set: CodecSet | None, head_size: int) -> NamedCodec:
    """The codec called `name`; ValueError if it is unknown or needs a codec set and has none."""
    if name in RIVALS:
        rival = RIVALS[name]
        return NamedCodec(name, lambda _, k, v: (rival.apply(k), rival.apply(v)),
                          rival.bits(head_size), rival.bits(head_size))
    if name not in FQ_NAMES:
        raise ValueError(f"codec {name!r} is unknown; known: {', '.join(CODEC_NAMES)}")
    if codec_set is None:
        raise ValueError(f"codec {name!r} needs a codec set (--codec-set)")
    refined = name == "near-lossless"
    values = codec_set.layers * codec_set.kv_heads * 2 * codec_set.head_size * PAGE_TOKENS
    return NamedCodec(name, CodecSetRows(codec_set, refined), codec_set.bits_per_value(refined),
                      slab_bytes(codec_set, refined) * 8 / values)


def check_fits(codec_set: CodecSet, model: Model) -> None:
    """ValueError if `codec_set` was made for another shape than `model` has."""
    for field in ("layers", "kv_heads", "head_size"):
        found, wanted = getattr(codec_set, field), getattr(model, field)
        if found != wanted:
            raise ValueError(f"{field}: the codec set has {found}, the model {wanted}")

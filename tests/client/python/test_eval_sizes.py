"""Ratios: computed sizes against the bytes of real extents and by hand."""

import pytest
import torch
from test_codec_set import random_codec_set

from flashquant.codec import PageKind, SlabHeader, encode_extent, encode_fq, row_codecs
from flashquant.evaluate.sizes import (
    base_bytes, chain_ratio, interior_ratio, refinement_bytes, slab_bytes)

LAYERS, HEADS, SIZE = 2, 3, 64


@pytest.fixture(scope="module")
def codec_set():
    return random_codec_set(layers=LAYERS, kv_heads=HEADS)


def real_extents(codec_set, sink):
    """Bytes of the base and the refinement extent of one block, as a node stores them."""
    pages = []
    for layer in range(LAYERS):
        for head in range(HEADS):
            k, v = torch.randn(2, 64, SIZE, generator=torch.Generator().manual_seed(head))
            pages.append(encode_fq(row_codecs(codec_set, layer, head), k, v, sink))
    extents = []
    for kind, parts in ((PageKind.BASE, [p.primary for p in pages]),
                        (PageKind.REFINEMENT, [p.refinement for p in pages])):
        data = [part.numpy().tobytes() for part in parts]
        header = SlabHeader(kind, int(sink), 0, LAYERS, 0, HEADS, 64, SIZE, 1, len(data), 0,
                            sum(map(len, data)), 0, bytes(32), bytes(32))
        extents.append(len(encode_extent(header, data)))
    return extents


def test_extent_bytes_equal_real_ones(codec_set):
    assert real_extents(codec_set, sink=False) == [base_bytes(codec_set),
                                                   refinement_bytes(codec_set)]
    assert real_extents(codec_set, sink=True)[0] == base_bytes(codec_set, sink=True)


def test_slab_bytes_by_hand(codec_set):
    pages = sum(64 * (sum(p.k) + sum(p.v)) for line in codec_set.profile_of
                for p in (codec_set.profiles[i] for i in line))
    assert slab_bytes(codec_set, refined=False) == pages + 192  # 128 + 6 * 8, to 64
    assert slab_bytes(codec_set, True) == base_bytes(codec_set) + refinement_bytes(codec_set)


def test_chain_ratio_by_hand(codec_set):
    raw = 2 * LAYERS * HEADS * 2 * SIZE * 256
    sinks, tail = LAYERS * HEADS * (32 * SIZE + 128), 2 * refinement_bytes(codec_set)
    assert chain_ratio(codec_set, 256, False) == pytest.approx(
        raw / (4 * base_bytes(codec_set) + sinks + tail))
    assert chain_ratio(codec_set, 256, True) == pytest.approx(
        raw / (4 * slab_bytes(codec_set, True) + sinks))


def test_chain_ratio_long_chain_near_interior(codec_set):
    ratios = [chain_ratio(codec_set, tokens, False) for tokens in (4096, 32768, 1 << 22)]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(interior_ratio(codec_set, False), rel=1e-3)


@pytest.mark.parametrize("tokens", [0, 64, 100])
def test_chain_ratio_no_chain_refused(codec_set, tokens):
    with pytest.raises(ValueError, match=f"found {tokens}"):
        chain_ratio(codec_set, tokens, False)

"""Packings found by probing synthetic engines, placements of blocks in chunks, views of caches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.cache_view import runs_of, view_of
from flashquant.vllm.geometry import ChunkShape, Packing, find_packing, rows_packing
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import SaveRing, smallest_segment
from flashquant.wire import pages_at


def writer_of(shape, place):
    """Engine that puts element (part, token, channel) of each head at place(...)."""
    def write(key, value):
        out = np.full((shape.heads, shape.head_elements), -1, np.float32)
        for part, rows in enumerate((key, value)):
            for token in range(shape.tokens):
                for channel in range(shape.head_size):
                    out[:, place(part, token, channel)] = rows[token, :, channel]
        return out
    return write


def vec(shape):
    """vLLM's "vec": K by columns, V by rows."""
    area = shape.tokens * shape.head_size
    return lambda part, t, d: area + t * shape.head_size + d if part else d * shape.tokens + t


def rows_side_by_side(shape):
    """GPU backends: [token][K | V]."""
    return lambda part, t, d: t * 2 * shape.head_size + part * shape.head_size + d


def amx(shape):
    """vLLM's "amx" (VLLM.md 6.3)."""
    tokens, size = shape.tokens, shape.head_size

    def place(part, t, d):
        if part:
            return tokens * size + d // 16 * tokens * 16 + t // 2 * 32 + d % 16 * 2 + t % 2
        return ((t // 16 * (size // 2) + d // 2) * 16 + t % 16) * 2 + d % 2
    return place


SHAPES = [ChunkShape(16, 1, 64, 4), ChunkShape(32, 3, 64, 2), ChunkShape(64, 2, 128, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probe_vec_strides_found(shape):
    area = shape.tokens * shape.head_size
    found = find_packing(shape, "vec", writer_of(shape, vec(shape)))
    assert found == Packing(0, 1, shape.tokens, area, shape.head_size, 1)
    assert found.name == "rows"


def test_probe_rows_side_by_side_strides_found():
    shape = SHAPES[1]
    found = find_packing(shape, "gpu", writer_of(shape, rows_side_by_side(shape)))
    assert found == Packing(0, 128, 1, 64, 128, 1)


def test_probe_largest_chunk_numbers_stay_exact():
    shape = ChunkShape(128, 1, 256, 2)
    found = find_packing(shape, "vec", writer_of(shape, vec(shape)))
    assert found.k_channel_stride == 128


@pytest.mark.parametrize("shape", [*SHAPES, ChunkShape(128, 1, 64, 2)], ids=str)
def test_probe_amx_is_brought_into_rows(shape):
    """No strides describe it, but every element has a place: the namespace is that of all rows."""
    place = amx(shape)
    found = find_packing(shape, "amx", writer_of(shape, place))
    assert found.name == "rows" and replace(found, order=()) == rows_packing(shape.head_size)
    staged = rows_side_by_side(shape)
    assert all(found.order[staged(part, t, d)] == place(part, t, d) for part in range(2)
               for t in range(shape.tokens) for d in range(shape.head_size))


def test_probe_lossy_engine_is_opaque():
    """An engine that rounds (quantised cache) must not pass for one that keeps numbers."""
    shape = SHAPES[0]
    write = writer_of(shape, vec(shape))
    found = find_packing(shape, "fp8", lambda k, v: np.round(write(k, v) / 16) * 16)
    assert found.opaque


def test_probe_lossy_chunk_longer_than_a_block_cannot_be_cached():
    shape = ChunkShape(128, 1, 64, 2)
    write = writer_of(shape, vec(shape))
    assert find_packing(shape, "fp8", lambda k, v: np.round(write(k, v) / 16) * 16) is None


def test_probe_engine_that_mixes_heads_is_opaque():
    shape = SHAPES[1]
    write = writer_of(shape, vec(shape))
    assert find_packing(shape, "odd", lambda k, v: write(k, v)[::-1]).opaque


def test_page_layout_counts_bytes():
    shape = ChunkShape(32, 3, 64, 2)
    layout = shape.page_layout(Packing(0, 1, 32, 2048, 64, 1), 4096)
    assert (layout.tokens_per_chunk, layout.layer_stride, layout.head_stride) == (32, 4096, 8192)
    assert (layout.k_token_stride, layout.k_channel_stride) == (2, 64)
    assert (layout.v_offset, layout.v_token_stride, layout.v_channel_stride) == (4096, 128, 2)


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
@pytest.mark.parametrize("first,blocks", [(0, 1), (0, 5), (3, 4), (2, 2)])
def test_placement_every_token_is_where_the_chunks_say(chunk, first, blocks):
    place = Placement(first, blocks, chunk)
    for row, (indices, first_token) in enumerate(zip(place.indices(), place.first_tokens())):
        token = (first + row) * 64
        assert place.base_token + indices[0] * chunk + first_token == token
        assert len(indices) == -(-(first_token + 64) // chunk)
        assert indices[-1] < place.chunks
    assert place.end_token - place.base_token <= place.chunks * chunk


@pytest.mark.parametrize("chunk", [32, 64, 128])
@pytest.mark.parametrize("first,blocks,limit", [(0, 10, 4), (3, 10, 4), (1, 1, 2), (0, 8, 8)])
def test_placement_pieces_cover_once_and_share_no_chunk(chunk, first, blocks, limit):
    pieces = Placement(first, blocks, chunk).pieces(limit)
    covered = [b for p in pieces for b in range(p.first_block, p.first_block + p.blocks)]
    assert covered == list(range(first, first + blocks))
    assert all(piece.blocks <= limit for piece in pieces)
    assert all(a.end_token <= b.base_token for a, b in zip(pieces, pieces[1:]))


def test_runs_of_ids():
    assert runs_of(np.array([5, 6, 7, 3, 9, 10])) == [(0, 5, 3), (3, 3, 1), (4, 9, 2)]
    assert runs_of(np.array([0])) == [(0, 0, 1)]
    assert runs_of(np.array([], dtype=np.int64)) == []


def caches(layers, blocks, kind):
    """Layers [blocks][heads 2][tokens 32][2 * 64] as different engines lay them out."""
    shape = (layers, blocks, 2, 32, 128)
    if kind == "one storage":
        return list(torch.randn(shape).bfloat16())
    if kind == "block outermost":
        return list(torch.randn(blocks, layers, 2, 32, 128).bfloat16().transpose(0, 1))
    if kind == "offset":
        return list(torch.randn(layers + 1, *shape[1:]).bfloat16()[1:])
    return [torch.randn(shape[1:]).bfloat16() for _ in range(layers)]


KINDS = ["one storage", "block outermost", "offset", "storage per layer"]


@pytest.mark.parametrize("kind", KINDS)
def test_view_gather_scatter_whole_chunks_only(kind):
    source, target = caches(3, 9, kind), caches(3, 9, kind)
    before = [t.clone() for t in target]
    view, other = view_of(source, 9), view_of(target, 9)
    assert len(view.parts) == (3 if kind == "storage per layer" else 1)
    ids = np.array([2, 3, 8, 0])
    staging = torch.zeros(3, 4, view.words, dtype=torch.int64)
    view.gather(ids, staging)
    other.scatter(ids, staging)
    for layer in range(3):
        for block in range(9):
            expected = source if block in ids else before
            assert torch.equal(target[layer][block].view(torch.int16),
                               expected[layer][block].view(torch.int16))


@pytest.mark.parametrize("kind", KINDS)
def test_ordered_view_copies_reorder_and_touch_their_chunks_only(kind):
    """Staging is the engine's heads in `order`; back again, chunks are as they were."""
    order = np.random.default_rng(5).permutation(2 * 32 * 64)
    source, target = caches(3, 9, kind), caches(3, 9, kind)
    before = [t.clone() for t in target]
    view = view_of(source, 9, tuple(order.tolist()))
    other = view_of(target, 9, tuple(order.tolist()))
    ids = np.array([2, 3, 8, 0])
    staging = torch.zeros(3, 4, view.words, dtype=torch.int64)
    view.gather(ids, staging)
    other.scatter(ids, staging)
    heads = staging.view(torch.bfloat16).view(3, 4, 2, -1)
    for layer in range(3):
        for at, block in enumerate(ids):
            engine = source[layer][block].reshape(2, -1)
            assert torch.equal(heads[layer, at], engine[:, torch.from_numpy(order)])
        for block in range(9):
            expected = source if block in ids else before
            assert torch.equal(target[layer][block].view(torch.int16),
                               expected[layer][block].view(torch.int16))


def test_view_kernel_blocks_smaller_than_the_managers():
    view = view_of(caches(2, 8, "one storage"), 4)
    assert view.chunks_per_block == 2 and view.chunk_ids([1, 3]).tolist() == [2, 3, 6, 7]


def test_view_of_fragmented_blocks_refused():
    by_token = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in caches(1, 4, "x")]
    with pytest.raises(ValueError, match="contiguous"):
        view_of(by_token, 4)


@pytest.mark.parametrize("tokens,expected", [(16, 4), (64, 1), (128, 1)])
def test_smallest_segment_holds_a_block_each_way(tokens, expected):
    view = view_of([torch.zeros(8, 2, tokens, 128).bfloat16() for _ in range(3)], 8)
    assert smallest_segment(view) == 2 * 3 * expected * 2 * tokens * 128 * 2


def test_ring_full_and_free_again():
    ring = SaveRing(100, 200)
    a, b = ring.take(60), ring.take(30)
    assert (a.offset, b.offset) == (100, 160) and ring.take(20) is None
    ring.give_back(b)
    assert ring.take(20) is None  # still behind a
    ring.give_back(a)
    assert ring.take(100).offset == 100 and ring.take(1) is None


def test_ring_wraps_without_overlap():
    rng, ring, live = np.random.default_rng(3), SaveRing(64, 1064), []
    for _ in range(3000):
        if live and rng.random() < 0.5:
            ring.give_back(live.pop(0))
        elif region := ring.take(int(rng.integers(1, 400))):
            assert 64 <= region.offset and region.offset + region.size <= 1064
            assert all(region.offset >= r.offset + r.size or r.offset >= region.offset + region.size
                       for r in live)
            live.append(region)


@pytest.mark.parametrize("chunks", [1, 4, 8, 9])
def test_pages_on_the_wire_are_what_protobuf_would_write(chunks):
    random = np.random.default_rng(chunks)
    offsets = random.integers(1 << 42, size=(37, chunks))
    offsets[0, 0], offsets[1, 0] = 0, (1 << 42) - 1
    first = random.choice([0, 64, 128, 192], 37).tolist()
    layout = pb.PageLayout(tokens_per_chunk=16, head_stride=256)
    expected = pb.Pages(layout=layout, segment_id=3, places=[
        pb.BlockPlace(chunk_offsets=row, first_token=token)
        for row, token in zip(offsets.tolist(), first)])
    assert pages_at(layout, offsets, first, 3) == expected

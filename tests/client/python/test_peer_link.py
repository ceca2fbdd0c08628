"""The parts of a peer link, one by one: sums, regions, the order of operations, deadlines."""

import queue
import random
import socket
import time

import numpy as np
import pytest
import torch

from flashquant import nccl
from flashquant.peer_comm import PeerError, Span, merged
from flashquant.peer_link import PeerLink, Transfer
from flashquant.row_sums import FACTOR, MASK, row_sums, unsigned
from flashquant.vllm.options import parse_options
from flashquant.vllm.peer_rows import PeerRows
from flashquant.vllm.placement import Placement
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.staging import Buffers
from socket_comm import SocketComm

WINDOW = 1 << 16
LONG_S = 60.0  # of what must happen


def by_definition(words):
    """The sum as the proto has it, word by word."""
    return sum((word & MASK) * (2 * i + 1) * FACTOR for i, word in enumerate(words)) & MASK


@pytest.mark.parametrize("words", [1, 2, 1023, 1024, 1025, 5000, 12288])
def test_sums_are_those_of_the_definition_and_see_any_change(words):
    regions = torch.randint(-2**63, 2**63 - 1, (3, words))
    sums = unsigned(row_sums(regions.view(torch.uint8)))
    assert sums == [by_definition(region) for region in regions.tolist()]
    changed = regions.clone()
    changed[0, -1] ^= 1 << 63
    changed[1, [0, -1]] = changed[1, [-1, 0]]
    after = unsigned(row_sums(changed.view(torch.uint8)))
    assert after[0] != sums[0] and after[2] == sums[2]
    assert words == 1 or after[1] != sums[1]


def test_sums_of_no_regions():
    assert unsigned(row_sums(torch.zeros(0, 4096, dtype=torch.uint8))) == []


def test_spans_join_where_one_begins_at_the_end_of_the_one_before():
    spans = [Span(0, 8), Span(8, 4), Span(16, 4), Span(20, 4), Span(12, 4)]
    assert merged(spans) == [Span(0, 12), Span(16, 8), Span(12, 4)]
    assert merged([]) == []


def test_regions_that_are_out_never_overlap_and_all_come_back():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    begin, count, size = 256 * rng.randrange(9), rng.randint(1, 9), 256 * rng.randint(1, 9)
    buffers, out = Buffers(begin, count, size), []
    for _ in range(2000):
        if rng.random() < 0.5:
            region = buffers.take(0)
            assert (region is None) == (len(out) == count)
            out += [region] if region else []
        elif out:
            buffers.give_back(out.pop(rng.randrange(len(out))))
        places = sorted(region.offset for region in out)
        assert all(a + size <= b for a, b in zip(places, places[1:]))
        assert all(begin <= place <= begin + (count - 1) * size for place in places)
    for region in out:
        buffers.give_back(region)
    assert len({buffers.take(0).offset for _ in range(count)}) == count


def test_whoever_waits_for_a_region_learns_that_there_will_be_none():
    buffers = Buffers(0, 1, 256)
    buffers.take(0)
    buffers.close()
    assert [buffers.take(LONG_S) for _ in range(3)] == [None] * 3


def test_cache_layouts_rows_of_every_layout_lie_dense_in_regions():
    layers, heads, size, blocks, first = 3, 2, 64, 5, 1
    for tokens in (8, 16, 64, 128):
        chunks = 40 * 64 // tokens
        for tensors in (
                [torch.randn(chunks, heads, tokens, 2 * size) for _ in range(layers)],
                [torch.randn(chunks, tokens, heads, 2 * size).permute(0, 2, 1, 3)
                 for _ in range(layers)],
                [torch.randn(2, chunks, tokens, heads, size) for _ in range(layers)],
                list(torch.randn(chunks, layers, 2, tokens, heads, size).transpose(0, 1))):
            view = RowsView(tensors, chunks, heads, size)
            rows, place = PeerRows(view), Placement(first, blocks, tokens)
            ids = np.random.permutation(chunks)[:place.chunks]
            regions = torch.zeros(blocks, rows.block_bytes, dtype=torch.uint8)
            rows.gather(place, ids, regions)
            dense = regions.view(torch.float32).view(blocks, layers, 2, 64, heads, size)
            skipped = first * 64 - place.base_token
            for layer, of_layer in enumerate(view.rows):
                for part, cache in enumerate((of_layer.k, of_layer.v)):
                    tokens_of = cache[torch.from_numpy(ids)].transpose(1, 2).flatten(0, 1)
                    wanted = tokens_of[skipped:skipped + 64 * blocks].unflatten(0, (blocks, 64))
                    assert torch.equal(dense[:, layer, part], wanted)


def test_chunks_outside_the_cache_are_refused_before_anything_is_touched():
    view = RowsView([torch.zeros(8, 2, 16, 128)], 8, 2, 64)
    rows = PeerRows(view)
    regions = torch.zeros(1, rows.block_bytes, dtype=torch.uint8)
    for bad in (-1, 8):
        with pytest.raises(ValueError, match="of a cache of 8"):
            rows.scatter(Placement(0, 1, 16), np.array([0, 1, bad, 3]), 0, 4, regions)


class Pair:
    """A link and the node's ends of its communicators."""

    def __init__(self, timeout_s=LONG_S):
        (ours, down), (up, theirs) = socket.socketpair(), socket.socketpair()
        self.window, self.there = (torch.zeros(WINDOW, dtype=torch.uint8) for _ in range(2))
        self.down, self.up = SocketComm(down, self.there), SocketComm(theirs, self.there)
        self.link = PeerLink(7, self.window, SocketComm(ours, self.window),
                             SocketComm(up, self.window), timeout_s)

    def close(self):
        self.down.abort()
        self.up.abort()
        assert self.link.close(LONG_S)


@pytest.fixture(name="pair")
def pair_fixture():
    pair = Pair()
    yield pair
    pair.close()


def test_receives_are_posted_in_the_order_of_the_numbers_whatever_that_of_the_replies(pair):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    spans = [Span(512 * i, 256 + 8 * i) for i in range(20)]
    pair.there.random_(0, 256)
    for span in spans:
        pair.down.send([span])
    numbers = list(range(1, 21))
    rng.shuffle(numbers)
    transfers = [pair.link.expect(number, [spans[number - 1]]) for number in numbers]
    for transfer in transfers:
        assert pair.link.expect(transfer.sequence, []) is transfer
        pair.link.wait(transfer)
        pair.link.forget(transfer)
        span, = transfer.spans
        assert torch.equal(pair.window[span.offset:span.end], pair.there[span.offset:span.end])
    late = pair.link.expect(3, [Span(0, 256)])
    assert late.operation is None and pair.link.broken == "", "a late callback changes nothing"


def test_sends_are_numbered_as_they_go(pair):
    pair.window.random_(0, 256)
    for number in (1, 2, 3):
        assert pair.link.announce() == number
        transfer = pair.link.send(number, [Span(256 * number, 256),
                                           Span(256 * number + 256, 256)])
        assert transfer.sequence == number
        taken = pair.up.receive([Span(256 * number, 512)])
        pair.link.wait(transfer)
        assert taken.ended.wait(LONG_S) and not taken.error
    assert torch.equal(pair.window[256:1280], pair.there[256:1280])


def test_operation_that_does_not_end_breaks_the_link_for_good():
    pair = Pair(timeout_s=0.2)
    broken = queue.SimpleQueue()
    pair.link.when_broken(lambda: broken.put(1))
    transfer = pair.link.expect(1, [Span(0, 256)])
    with pytest.raises(PeerError, match="operation 1 not done within 0.2 s"):
        pair.link.wait(transfer)
    assert broken.get(timeout=LONG_S)
    for call in (lambda: pair.link.expect(2, [Span(0, 256)]), lambda: pair.link.wait(transfer),
                 lambda: pair.link.send(1, [Span(0, 256)])):
        with pytest.raises(PeerError, match="peer link broken: operation 1"):
            call()
    told = queue.SimpleQueue()
    pair.link.when_broken(lambda: told.put(1))
    assert told.get(timeout=LONG_S), "told later, told at once"
    pair.close()


def test_send_out_of_turn_breaks_the_link(pair):
    assert [pair.link.announce() for _ in range(2)] == [1, 2]
    with pytest.raises(PeerError, match="operation 2 after 0"):
        pair.link.send(2, [Span(0, 256)])
    assert pair.link.broken


def test_receive_is_not_overdue_before_its_time(pair):
    assert not pair.link.overdue()
    pair.link.expect(1, [Span(0, 256)])
    assert not pair.link.overdue()


def test_receive_that_nobody_waits_for_is_overdue_in_time():
    pair = Pair(timeout_s=0.2)
    transfer = pair.link.expect(1, [Span(0, 256)])
    deadline_s = time.monotonic() + LONG_S
    while not pair.link.overdue():
        assert time.monotonic() < deadline_s
    pair.link.forget(transfer)
    assert not pair.link.overdue()
    pair.close()


def test_number_that_never_comes_breaks_the_link():
    pair = Pair(timeout_s=0.2)
    with pytest.raises(PeerError, match="operation 2 not done within 0.2 s"):
        pair.link.wait(pair.link.expect(2, [Span(0, 256)]))
    pair.close()


def test_other_end_that_dies_breaks_the_link_at_once():
    pair = Pair(timeout_s=10 * LONG_S)
    transfer = pair.link.expect(1, [Span(0, 256)])
    pair.down.abort()
    begin_s = time.monotonic()
    with pytest.raises(PeerError, match="the other end is gone"):
        pair.link.wait(transfer)
    assert time.monotonic() - begin_s < LONG_S
    pair.close()


class DoneWhenAborted:
    """As an event behind a kernel that an abort has ended."""

    def __init__(self, link):
        self._link = link

    def done(self):
        self._link.break_link("aborted meanwhile")
        return True


def test_operation_that_an_abort_ended_has_not_arrived(pair):
    transfer = Transfer(1, [Span(0, 256)], DoneWhenAborted(pair.link))
    with pytest.raises(PeerError, match="aborted meanwhile"):
        pair.link.wait(transfer)


def test_other_length_than_awaited_breaks_the_link(pair):
    pair.down.send([Span(0, 512)])
    with pytest.raises(PeerError, match="512 bytes came, 256 were awaited"):
        pair.link.wait(pair.link.expect(1, [Span(0, 256)]))



def test_library_is_new_enough_and_says_its_version():
    assert nccl.version_code(nccl.library()) >= nccl.OLDEST
    assert nccl.version_text(22907) == "2.29.7"


def test_library_that_is_missing_or_too_old_is_said(monkeypatch):
    nccl.library.cache_clear()
    monkeypatch.setattr(nccl, "candidates", lambda: [("no-such-library.so", 2)])
    with pytest.raises(PeerError, match="no NCCL: no-such-library.so"):
        nccl.library()
    monkeypatch.undo()
    monkeypatch.setattr(nccl, "OLDEST", 99900)
    with pytest.raises(PeerError, match="is older than 9.99.0"):
        nccl.library()
    nccl.library.cache_clear()


def test_id_of_another_length_is_refused():
    with pytest.raises(PeerError, match="has 128 bytes, got 3"):
        nccl.NcclComm(b"abc", 0, torch.zeros(8), 16, 1.0)


def test_options_of_nccl():
    assert parse_options({"codec_set": "x"}).nccl
    assert not parse_options({"codec_set": "x", "nccl": False}).nccl
    with pytest.raises(ValueError, match="nccl must be of type bool, got 1"):
        parse_options({"codec_set": "x", "nccl": 1})
    with pytest.raises(ValueError, match="nccl_window_bytes must be > 0, got 0"):
        parse_options({"codec_set": "x", "nccl_window_bytes": 0})

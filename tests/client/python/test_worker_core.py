"""Worker half over CPU tensors against a real node: bytes come back, failures are reported once.

The node is FQ_BUILD/bin/flashquantd (default build/release).
"""

import gc
import os
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache_worker import wait_until
from fake_node import PATIENT, READY_S
from flashquant.client import Client
from flashquant.keys import KeyChain, Namespace, root_key
from flashquant.link import SessionSpec
from flashquant.local_node import LocalNode
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.cache_view import view_of
from flashquant.vllm.geometry import Packing
from flashquant.vllm.jobs import LoadJob, SaveJob, StepJobs
from flashquant.vllm.loader import before_compact_tail
from flashquant.vllm.worker_core import WorkerCore
from flashquant.wire import Profile

ROOT = Path(__file__).parents[3]
BINARY = ROOT / os.environ.get("FQ_BUILD", "build/release") / "bin" / "flashquantd"
LAYERS, HEADS, SIZE = 3, 2, 64
NAMESPACE = Namespace("worker-test", LAYERS, HEADS, SIZE, pb.DTYPE_BF16, extra={"packing": "rows"})
SPEC = SessionSpec("worker-test", NAMESPACE, (0, LAYERS), (0, HEADS), segment_bytes=8 << 20)
HASTY = replace(PATIENT, lookup_s=0.2, load_s=0.5, store_s=0.5)  # only for a node that is frozen
# vLLM's "vec" packing: K by columns, V by rows.
BLOCK_SIZES = [16, 32, 64, 128]


def vec(tokens):
    return Packing(0, 1, tokens, tokens * SIZE, SIZE, 1)


class Worker:
    """A worker core over its own KV cache of 2,048 tokens."""

    def __init__(self, endpoint, tokens=64, spec=SPEC):
        self.tokens, self.blocks = tokens, 2048 // tokens
        self.cache = torch.randn(LAYERS, self.blocks, HEADS, tokens, 2 * SIZE).bfloat16()
        self.client = Client(endpoint, spec, PATIENT)
        view = view_of(list(self.cache), self.blocks)
        self.core = WorkerCore(self.client, view, vec(tokens), tokens)
        assert self.client.wait_ready(READY_S)

    def chain(self, blocks, seed=0):
        link = self.client.link
        chain = KeyChain(root_key(NAMESPACE.fingerprint(), link.info.tenant, f"{seed}"))
        chain.extend(range(blocks * 64))
        return chain

    def save(self, chain, begin, end, ids, profile=Profile.EXACT):
        job = SaveJob("save", begin, chain.keys(begin, end), chain.keys(max(0, begin - 2), begin),
                      ids, profile)
        self.core.stage_saves(StepJobs(saves=[job]))

    def stored(self, chain, blocks, floor=Profile.COMPACT):
        """Waits until the first blocks of a chain are published, and their room is free again."""
        def found():
            match = self.client.lookup(chain.keys(0, blocks), floor)
            return match if match and match.matched_blocks == blocks else None
        match = wait_until(found)
        self.core.hold_saved(StepJobs(held=["save"]))
        wait_until(lambda: "save" in self.core.take_saved())
        return match

    def load(self, chain, begin_token, end_token, ids, floor=Profile.COMPACT):
        """Loads and waits for the report; returns the bad blocks."""
        job = LoadJob("load", chain.keys(0, -(-end_token // 64)), begin_token, end_token, ids,
                      floor)
        self.core.submit_loads(StepJobs(loads=[job]))
        return self.reported("load")

    def reported(self, name):
        assert wait_until(self.core.take_results) == {name}
        assert self.core.take_results() == set()
        return self.core.take_bad_blocks()

    def keys_and_values(self, ids, tokens):
        """K and V by rows, [layers][heads][K|V][tokens][size], of the first `tokens` in `ids`."""
        n = self.tokens
        flat = self.cache[:, ids].reshape(LAYERS, len(ids), HEADS, 2, n * SIZE)
        k = flat[..., 0, :].reshape(LAYERS, len(ids), HEADS, SIZE, n).transpose(-1, -2)
        v = flat[..., 1, :].reshape(LAYERS, len(ids), HEADS, n, SIZE)
        both = torch.stack([k, v], dim=3)  # layers, blocks, heads, 2, n, size
        both = both.permute(0, 2, 3, 1, 4, 5).reshape(LAYERS, HEADS, 2, len(ids) * n, SIZE)
        return both[..., :tokens, :]


@pytest.fixture(name="node", scope="module")
def node_fixture():
    with LocalNode(BINARY, host_bytes=256 << 20) as node:
        yield node


@pytest.fixture(name="make")
def make_fixture(node):
    """Makes workers of the shared node; shuts them down."""
    workers = []

    def make(*args, endpoint=node.endpoint, **kwargs):
        workers.append(Worker(endpoint, *args, **kwargs))
        return workers[-1]
    yield make
    for worker in workers:
        worker.core.shutdown()


@pytest.mark.parametrize("tokens", BLOCK_SIZES)
def test_save_load_exact_same_bytes(make, tokens):
    writer, reader = make(tokens), make(tokens)
    chain = writer.chain(10, f"same{tokens}")
    count = 640 // tokens
    ids = torch.randperm(writer.blocks)[:count].tolist()
    writer.save(chain, 0, 10, ids)
    writer.stored(chain, 10)
    before = reader.cache.clone()
    target = torch.randperm(reader.blocks)[:count].tolist()
    assert reader.load(chain, 0, 640, target) == set()
    assert torch.equal(reader.cache[:, target], writer.cache[:, ids])
    rest = [i for i in range(reader.blocks) if i not in target]
    assert torch.equal(reader.cache[:, rest], before[:, rest])


@pytest.mark.parametrize("source,target", [(16, 64), (64, 32), (128, 64), (64, 128), (32, 128)])
def test_save_load_between_block_sizes_same_rows(make, source, target):
    writer, reader = make(source), make(target)
    chain = writer.chain(6, f"{source}to{target}")
    writer.save(chain, 0, 6, list(range(384 // source)))
    writer.stored(chain, 6)
    assert reader.load(chain, 0, 384, list(range(384 // target))) == set()
    expected = writer.keys_and_values(list(range(384 // source)), 384)
    assert torch.equal(reader.keys_and_values(list(range(384 // target)), 384), expected)


@pytest.mark.parametrize("source,target", [(16, 16), (32, 128), (128, 64)])
def test_node_that_takes_no_segment_pages_travel_inline(make, source, target):
    remote = replace(SPEC, segment_bytes=0)
    writer, reader = make(source, spec=remote), make(target, spec=remote)
    chain = writer.chain(7, f"inline{source}{target}")
    blocks = 448 // source if source <= 64 else 4
    ids = torch.randperm(writer.blocks)[:blocks].tolist()
    writer.save(chain, 0, 7, ids)
    writer.stored(chain, 7)
    end = 384 if target == 128 else 448
    places = torch.randperm(reader.blocks)[:end // target].tolist()
    assert reader.load(chain, 0, end, places) == set()
    assert torch.equal(reader.keys_and_values(places, end), writer.keys_and_values(ids, end))
    assert reader.core.take_counters()["transport_inline"] == 1


def test_inline_load_inside_a_block_leaves_the_local_prefix_alone(make):
    remote = replace(SPEC, segment_bytes=0)
    writer, reader = make(16, spec=remote), make(16, spec=remote)
    chain = writer.chain(3, "inline-prefix")
    writer.save(chain, 0, 3, list(range(12)))
    writer.stored(chain, 3)
    before = reader.cache.clone()
    assert reader.load(chain, 80, 192, list(range(5, 12))) == set()
    assert torch.equal(reader.cache[:, :5], before[:, :5])
    assert torch.equal(reader.cache[:, 5:12], writer.cache[:, 5:12])


def test_save_in_steps_halves_of_128(make):
    writer, reader = make(128), make(128)
    chain = writer.chain(4, "halves")
    for first, end, ids in ((0, 1, [5]), (1, 3, [5, 6]), (3, 4, [6])):
        writer.save(chain, first, end, ids)
    writer.stored(chain, 4)
    assert reader.load(chain, 0, 256, [1, 2]) == set()
    assert torch.equal(reader.cache[:, [1, 2]], writer.cache[:, [5, 6]])


@pytest.mark.parametrize("tokens,begin", [(16, 80), (32, 96), (64, 128), (128, 128)])
def test_load_behind_a_local_prefix_leaves_it_alone(make, tokens, begin):
    writer, reader = make(tokens), make(tokens)
    chain = writer.chain(6, f"prefix{tokens}")
    ids = list(range(384 // tokens))
    writer.save(chain, 0, 6, ids)
    writer.stored(chain, 6)
    before = reader.cache.clone()
    assert reader.load(chain, begin, 384, ids[begin // tokens:]) == set()
    local = ids[:begin // tokens]
    assert torch.equal(reader.cache[:, local], before[:, local])
    loaded = ids[begin // tokens:]
    assert torch.equal(reader.cache[:, loaded], writer.cache[:, loaded])


def test_universal_reads_true_rows(make):
    writer, reader = make(64), make(32)
    chain = writer.chain(4, "universal")
    writer.save(chain, 0, 4, [0, 1, 2, 3], Profile.UNIVERSAL)
    match = writer.stored(chain, 4)
    raw = 4 * LAYERS * HEADS * 2 * 64 * SIZE * 2
    assert sum(match.stored_bytes) < raw / 2
    assert reader.load(chain, 0, 256, list(range(8))) == set()
    expected = writer.keys_and_values([0, 1, 2, 3], 256).float()
    found = reader.keys_and_values(list(range(8)), 256).float()
    error = (found - expected).pow(2).mean() / expected.pow(2).mean()
    assert 0 < error < 0.02


def test_load_long_chain_in_many_pieces(make):
    spec = replace(SPEC, segment_bytes=1 << 20)  # ten blocks
    writer, reader = make(64, spec=spec), make(64, spec=spec)
    chain = writer.chain(30, "long")
    for begin in range(0, 30, 5):
        writer.save(chain, begin, begin + 5, list(range(begin, begin + 5)))
        writer.stored(chain, begin + 5)
    assert reader.load(chain, 0, 1920, list(range(30))) == set()
    assert torch.equal(reader.cache[:, :30], writer.cache[:, :30])


def test_load_missing_end_reports_the_rest_bad(make):
    worker = make(64)
    chain = worker.chain(8, "end")
    worker.save(chain, 0, 5, [0, 1, 2, 3, 4])
    worker.stored(chain, 5)
    source = worker.cache[:, :5].clone()
    assert worker.load(chain, 0, 512, list(range(20, 28))) == {25, 26, 27}
    assert torch.equal(worker.cache[:, 20:25], source)


def test_load_missing_end_of_128_reports_whole_blocks(make):
    worker = make(128)
    chain = worker.chain(8, "end128")
    worker.save(chain, 0, 5, [0, 1, 2])
    worker.stored(chain, 5)
    assert worker.load(chain, 0, 512, [10, 11, 12, 13]) == {12, 13}


@pytest.mark.parametrize("profiles,reached,expected", [
    ("CCCC", 3, 1), ("CCNN", 4, 4), ("CCNN", 3, 1), ("NNNN", 2, 2), ("EEEE", 1, 1), ("CC", 1, 0),
    ("CC", 0, 0), ("UUUU", 3, 3),
])
def test_load_that_ended_early_never_ends_in_compact_blocks(profiles, reached, expected):
    letters = {"E": Profile.EXACT, "N": Profile.NEAR_LOSSLESS, "C": Profile.COMPACT,
               "U": Profile.UNIVERSAL}
    assert before_compact_tail(tuple(letters[p] for p in profiles), reached) == expected


def test_load_of_nothing_stored_reports_all_bad(make):
    worker = make(64)
    before = worker.cache.clone()
    assert worker.load(worker.chain(3, "nothing"), 0, 192, [7, 8, 9]) == {7, 8, 9}
    assert torch.equal(worker.cache, before)


def test_load_below_floor_reports_bad(make):
    worker = make(64)
    chain = worker.chain(3, "floor")
    worker.save(chain, 0, 3, [0, 1, 2], Profile.UNIVERSAL)
    worker.stored(chain, 3)
    assert worker.load(chain, 0, 192, [7, 8, 9], Profile.EXACT) == {7, 8, 9}


def test_load_cancelled_is_still_reported(make):
    worker = make(64)
    chain = worker.chain(3, "cancel")
    job = LoadJob("load", chain.keys(0, 3), 0, 192, [7, 8, 9], Profile.COMPACT)
    worker.core.submit_loads(StepJobs(loads=[job]))
    worker.core.requests_finished({"load"})
    worker.reported("load")


def test_load_without_keys_is_reported_bad(make):
    worker = make(64)
    job = LoadJob("load", b"", 0, 64, [7], Profile.COMPACT)
    worker.core.submit_loads(StepJobs(loads=[job]))
    assert worker.reported("load") == {7}


def test_save_ring_full_drops_and_counts_and_leaves_no_gap(make, monkeypatch):
    worker = make(64, spec=replace(SPEC, segment_bytes=1 << 20))
    chain = worker.chain(32, "full")
    store, may_store = worker.client.store, threading.Event()
    monkeypatch.setattr(worker.client, "store", lambda *args: may_store.wait() and store(*args))
    worker.save(chain, 0, 32, list(range(32)))  # 3 MiB into half a MiB, and the node is slow
    assert worker.core.take_counters()["dropped_save_blocks"] == 27
    may_store.set()
    worker.stored(chain, 5)
    worker.save(chain, 30, 32, [30, 31])  # the same request: useless behind the gap
    assert worker.core.take_counters()["dropped_save_blocks"] == 2
    worker.core.requests_finished({"save"})
    worker.save(chain, 0, 2, [0, 1])
    assert "dropped_save_blocks" not in worker.core.take_counters()


def test_save_twice_is_counted_as_existing(make):
    worker = make(64)
    chain = worker.chain(2, "twice")
    for _ in range(2):
        worker.save(chain, 0, 2, [0, 1])
    worker.stored(chain, 2)
    counts = worker.core.take_counters()
    assert (counts["saved_ok_blocks"], counts["saved_exists_blocks"]) == (2, 2)


@pytest.fixture(name="doomed")
def doomed_fixture():
    """A node of its own, with five blocks stored."""
    with LocalNode(BINARY, host_bytes=64 << 20) as node:
        worker = Worker(node.endpoint, 64)
        chain = worker.chain(5, "doomed")
        worker.save(chain, 0, 5, [0, 1, 2, 3, 4])
        worker.stored(chain, 5)
        yield node, worker, chain
        worker.core.shutdown()


def test_node_killed_loads_fail_at_once_and_recover_with_the_node(doomed):
    node, worker, chain = doomed
    node.kill()
    begin_s = time.monotonic()
    assert worker.load(chain, 0, 320, [10, 11, 12, 13, 14]) == {10, 11, 12, 13, 14}
    assert time.monotonic() - begin_s < PATIENT.load_s / 2
    worker.save(chain, 0, 5, [0, 1, 2, 3, 4])
    node.start()
    assert worker.client.wait_ready(READY_S)
    worker.core.requests_finished({"save"})
    worker.save(chain, 0, 5, [0, 1, 2, 3, 4])
    worker.stored(chain, 5)
    assert worker.load(chain, 0, 320, [10, 11, 12, 13, 14]) == set()
    assert torch.equal(worker.cache[:, 10:15], worker.cache[:, :5])


def test_node_frozen_load_ends_within_its_deadline(doomed):
    node, worker, chain = doomed
    worker.client.deadlines = HASTY
    node.freeze()
    assert worker.load(chain, 0, 320, [10, 11, 12, 13, 14]) == {10, 11, 12, 13, 14}
    node.thaw()


def test_node_frozen_during_a_store_its_late_reads_meet_the_old_bytes(doomed):
    """A store given up must not find later contents of the ring under its keys."""
    node, worker, _ = doomed
    segment = worker.client.link.segment
    chain = worker.chain(8, "late")
    worker.client.deadlines = HASTY
    node.freeze()
    worker.save(chain, 0, 4, [20, 21, 22, 23])
    wait_until(lambda: worker.client.link is None)
    worker.client.deadlines = PATIENT
    node.thaw()
    assert worker.client.wait_ready(READY_S)
    assert worker.client.link.segment is not segment
    worker.cache[:, 20:24] += 1
    match = worker.client.lookup(chain.keys(0, 4), Profile.EXACT)
    if match and match.matched_blocks:
        end = match.matched_blocks
        bad = worker.load(chain, 0, end * 64, list(range(24, 24 + end)))
        good = [i for i in range(24, 24 + end) if i not in bad]
        assert torch.equal(worker.cache[:, good] + 1, worker.cache[:, [i - 4 for i in good]])


def test_node_restarted_memory_of_the_old_link_is_gone_without_the_collector(doomed):
    """A segment may have a gigabyte, and an engine's collector may not run for hours."""
    node, worker, chain = doomed
    memory = weakref.ref(worker.client.link.segment.view.obj)
    first = worker.client.link.session_id
    gc.disable()
    try:
        node.kill()
        node.start()
        wait_until(lambda: (link := worker.client.link) and link.session_id != first)
        worker.load(chain, 0, 320, [10, 11, 12, 13, 14])  # over the new link
        wait_until(lambda: memory() is None)
    finally:
        gc.enable()


def test_shutdown_with_a_load_under_way_is_bounded(doomed):
    node, worker, chain = doomed
    node.freeze()
    job = LoadJob("load", chain.keys(0, 5), 0, 320, [10, 11, 12, 13, 14], Profile.COMPACT)
    worker.core.submit_loads(StepJobs(loads=[job]))
    begin_s = time.monotonic()
    worker.core.shutdown()
    assert time.monotonic() - begin_s < PATIENT.load_s / 2

"""The floor of a request (DESIGN.md, P7) through the Python client and the connector's worker half,
against a real node: what a job gets is at least its floor, or a miss.

The node is FQ_BUILD/bin/flashquantd (default build/release).
"""

import os
from pathlib import Path

import pytest
import torch

from cache_worker import wait_until
from fake_node import PATIENT, READY_S
from flashquant.client import Client
from flashquant.codec_set import read_codec_set
from flashquant.keys import KeyChain, Namespace, root_key
from flashquant.link import SessionSpec
from flashquant.local_node import LocalNode
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.cache_view import view_of
from flashquant.vllm.geometry import Packing
from flashquant.vllm.jobs import LoadJob, SaveJob, StepJobs
from flashquant.vllm.worker_core import WorkerCore
from flashquant.wire import Profile

ROOT = Path(__file__).parents[3]
BINARY = ROOT / os.environ.get("FQ_BUILD", "build/release") / "bin" / "flashquantd"
CODEC_SET = ROOT / "tests/golden/codec_set_d64.fqcs"
LAYERS, HEADS, SIZE, TOKENS = 1, 2, 64, 64
BLOCKS = 4

EXACT, NEAR, COMPACT, UNIVERSAL = Profile
# (stored as, whether the chain grew by two compact blocks, held afterwards)
CASES = [
    (EXACT, False, [EXACT] * 4), (EXACT, True, [EXACT] * 4),
    (NEAR, False, [NEAR] * 4), (NEAR, True, [NEAR] * 4),
    (COMPACT, False, [COMPACT, COMPACT, NEAR, NEAR]), (COMPACT, True, [COMPACT] * 4),
    (UNIVERSAL, False, [UNIVERSAL] * 4), (UNIVERSAL, True, [UNIVERSAL] * 4)]


@pytest.fixture(name="node", scope="module")
def node_fixture():
    with LocalNode(BINARY, codec_sets=[CODEC_SET], host_bytes=64 << 20) as node:
        yield node


@pytest.fixture(name="worker")
def worker_fixture(node):
    worker = Worker(node.endpoint)
    yield worker
    worker.core.shutdown()


class Worker:
    """The connector's worker half over a KV cache of 12 engine blocks."""

    def __init__(self, endpoint):
        codec_set = read_codec_set(CODEC_SET)
        self.namespace = Namespace("floor-test", LAYERS, HEADS, SIZE, pb.DTYPE_BF16,
                                   codec_set_id=codec_set.id, extra={"packing": "rows"})
        spec = SessionSpec("floor-test", self.namespace, (0, LAYERS), (0, HEADS),
                           segment_bytes=8 << 20)
        self.cache = torch.randn(LAYERS, 12, HEADS, TOKENS, 2 * SIZE).bfloat16()
        self.client = Client(endpoint, spec, PATIENT)
        packing = Packing(0, 1, TOKENS, TOKENS * SIZE, SIZE, 1)
        self.core = WorkerCore(self.client, view_of(list(self.cache), 12), packing, TOKENS)
        assert self.client.wait_ready(READY_S)

    def chain(self, name):
        chain = KeyChain(root_key(self.namespace.fingerprint(), self.client.link.info.tenant, name))
        chain.extend(range((BLOCKS + 2) * TOKENS))
        return chain

    def save(self, chain, begin, end, profile):
        """Stores blocks [begin, end) and waits for the reply: blocks are published before the
        refinements that the chain has outgrown are dropped."""
        job = SaveJob("save", begin, chain.keys(begin, end), chain.keys(max(0, begin - 2), begin),
                      list(range(begin, end)), profile)
        self.core.stage_saves(StepJobs(saves=[job]))
        self.core.hold_saved(StepJobs(held=["save"]))
        wait_until(self.core.take_saved)
        assert self.client.lookup(chain.keys(0, end), COMPACT).matched_blocks == end

    def load(self, chain, floor):
        """Loads the chain's first blocks into engine blocks 8..11; how many of them are good."""
        job = LoadJob("load", chain.keys(0, BLOCKS), 0, BLOCKS * TOKENS, [8, 9, 10, 11], floor)
        self.core.submit_loads(StepJobs(loads=[job]))
        wait_until(self.core.take_results)
        return BLOCKS - len(self.core.take_bad_blocks())


def loaded_by_profile(node):
    counters = node.status(READY_S).counters
    return {profile: counters[f'fq_blocks_loaded_total{{profile="{profile.label}"}}']
            for profile in Profile}


def prefix_at_floor(held, floor):
    """Profiles of the blocks before the first that is worth less than `floor`."""
    for i, profile in enumerate(held):
        if profile.own_floor > floor:
            return held[:i]
    return held


@pytest.mark.parametrize("floor", [EXACT, NEAR, COMPACT])
@pytest.mark.parametrize("stored, grew, held", CASES)
def test_lookup_and_load_give_the_floor_or_a_miss(node, worker, stored, grew, held, floor):
    chain = worker.chain(f"{stored}/{grew}/{floor}")
    worker.save(chain, 0, BLOCKS, stored)
    if grew:
        worker.save(chain, BLOCKS, BLOCKS + 2, COMPACT)
    expected = prefix_at_floor(held, floor)
    match = worker.client.lookup(chain.keys(0, BLOCKS), floor)
    assert list(match.profiles) == expected
    usable = expected if COMPACT not in expected[-2:] else expected[:-2]  # tail rule
    before, cache = loaded_by_profile(node), worker.cache[:, 8:].clone()
    assert worker.load(chain, floor) == len(usable)
    after = loaded_by_profile(node)
    for profile in Profile:
        assert after[profile] - before[profile] == usable.count(profile), profile.label
    untouched = [torch.equal(worker.cache[:, 8 + i], cache[:, i]) for i in range(BLOCKS)]
    assert untouched == [i >= len(usable) for i in range(BLOCKS)]

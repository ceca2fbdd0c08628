"""A worker core over a KV cache in tests: saves and loads chains, and shows the rows."""

import time

import torch

from fake_node import READY_S
from flashquant.client import Client
from flashquant.keys import KeyChain, root_key
from flashquant.vllm.geometry import rows_packing
from flashquant.vllm.jobs import LoadJob, SaveJob, StepJobs
from flashquant.vllm.worker_core import WorkerCore
from flashquant.wire import Profile


class CacheWorker:
    """Over a RowsView, with whatever the spec shares; exact pages."""

    def __init__(self, endpoint, view, spec, deadlines, peers=None):
        self.view, self.namespace, self.counts = view, spec.namespace, {}
        self.client = Client(endpoint, spec, deadlines)
        shape = view.shape
        self.core = WorkerCore(self.client, view, rows_packing(shape.head_size), shape.tokens,
                               peers=peers)
        assert self.client.wait_ready(READY_S)

    def chain(self, blocks, salt):
        link = self.client.link
        chain = KeyChain(root_key(self.namespace.fingerprint(), link.info.tenant, salt))
        chain.extend(range(blocks * 64))
        return chain

    def save(self, chain, begin, end, ids, request_id="save"):
        self.core.stage_saves(StepJobs(saves=[SaveJob(
            request_id, begin, chain.keys(begin, end), chain.keys(max(0, begin - 2), begin), ids,
            Profile.EXACT)]))

    def start_load(self, chain, begin_token, end_token, ids, name="load"):
        self.core.submit_loads(StepJobs(loads=[LoadJob(
            name, chain.keys(0, end_token // 64), begin_token, end_token, ids, Profile.COMPACT)]))

    def load(self, *arguments):
        """Starts a load and waits for its report; returns the bad blocks."""
        self.start_load(*arguments)
        wait_until(self.core.take_results)
        return self.core.take_bad_blocks()

    def rows(self, ids):
        """K and V, [layers][2][heads][tokens][size]."""
        return torch.stack([torch.stack([part[ids].transpose(0, 1).flatten(1, 2)
                                         for part in (rows.k, rows.v)]) for rows in self.view.rows])

    def count(self, name):
        for key, amount in self.core.take_counters().items():
            self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts.get(name, 0)


def wait_until(condition, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    return result


def stored(node, chain, blocks):
    keys = [chain.keys(i, i + 1) for i in range(blocks)]
    wait_until(lambda: node.stored.issuperset(keys))

"""Pages from GPU to GPU as the worker sees it, over sockets in NCCL's place, against a node that
errs on demand: bytes, order, sums, what breaks a link, and what then carries the pages.
"""

import threading

import grpc
import pytest
import torch

from cache_worker import CacheWorker, stored, wait_until
from fake_device_node import UUID
from fake_node import PATIENT
from fake_peer_node import FakePeerNode
from flashquant.keys import Namespace
from flashquant.link import SessionSpec
from flashquant.peer_comm import PeerError
from flashquant.peer_link import PeerOptions, offered
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.jobs import StepJobs
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.staging import smallest_segment
from socket_comm import connect

LAYERS, HEADS, SIZE, TOKENS = 2, 3, 64, 2560
BLOCK_BYTES = LAYERS * 2 * 64 * HEADS * SIZE * 2
NAMESPACE = Namespace("peer-test", LAYERS, HEADS, SIZE, pb.DTYPE_BF16)
LONG_S = 60.0  # of what must happen


class Worker(CacheWorker):
    """A worker core over a KV cache of 40 blocks; its window holds `window_blocks`."""

    def __init__(self, node, tokens=16, window_blocks=10, connect_with=connect,
                 peers=True):
        self.tokens, chunks = tokens, TOKENS // tokens
        tensors = [torch.randn(chunks, tokens, HEADS, 2 * SIZE).bfloat16().permute(0, 2, 1, 3)
                   for _ in range(LAYERS)]
        view = RowsView(tensors, chunks, HEADS, SIZE)
        spec = SessionSpec("peer-test", NAMESPACE, (0, LAYERS), (0, HEADS), "w",
                           4 * smallest_segment(view))
        options = PeerOptions(b"w" * 16, connect_with, window_blocks * BLOCK_BYTES, LONG_S)
        super().__init__(node.endpoint, view, spec, PATIENT, options if peers else None)

    def by_nccl(self):
        """Waits until pages go by the link."""
        return wait_until(lambda: way if (way := self.core.access.transport()).name == "nccl"
                          else None)

    def ids(self, blocks):
        """Engine blocks for so many blocks, in random order."""
        return torch.randperm(TOKENS // self.tokens)[:blocks * 64 // self.tokens].tolist()


@pytest.fixture(name="node")
def node_fixture(tmp_path):
    node = FakePeerNode(tmp_path / "s", 2, HEADS, SIZE)
    node.fingerprint = NAMESPACE.fingerprint()
    node.start()
    yield node
    node.stop()


@pytest.fixture(name="make")
def make_fixture(node):
    workers = []

    def make(*args, **kwargs):
        workers.append(Worker(node, *args, **kwargs))
        return workers[-1]
    yield make
    for worker in workers:
        worker.core.shutdown()


def saved(node, worker, blocks, salt):
    """(chain, engine blocks) that the node has by the link."""
    worker.by_nccl()
    chain, ids = worker.chain(blocks, salt), worker.ids(blocks)
    worker.save(chain, 0, blocks, ids)
    stored(node, chain, blocks)
    return chain, ids


@pytest.mark.parametrize("tokens", [16, 64, 128])
def test_rows_come_back_in_other_blocks_in_pieces(make, node, tokens):
    writer, reader = make(tokens), make(tokens)
    reader.by_nccl()
    chain, ids = saved(node, writer, 12, "pieces")
    target = reader.ids(12)
    others = sorted(set(range(TOKENS // tokens)) - set(target))
    before = reader.rows(others).clone()
    assert reader.load(chain, 0, 768, target) == set()
    assert torch.equal(reader.rows(target), writer.rows(ids))
    assert torch.equal(reader.rows(others), before)
    assert (writer.count("transport_nccl"), reader.count("transport_nccl")) == (1, 1)
    wait_until(lambda: {tuple(link.down.sent) for link in node.links.values()} == {
        (256,), (256, *[2 * BLOCK_BYTES] * 6)})  # pieces of two blocks


def test_load_behind_a_local_prefix_inside_a_block_leaves_it_alone(make, node):
    worker = make()
    chain, ids = saved(node, worker, 4, "prefix")
    target = [i for i in range(160) if i not in ids][:16]
    before = worker.rows(target).clone()
    assert worker.load(chain, 80, 256, target[5:]) == set()
    now, source = worker.rows(target), worker.rows(ids)
    assert torch.equal(now[..., :80, :], before[..., :80, :])
    assert torch.equal(now[..., 80:, :], source[..., 80:, :])


def test_replies_that_overtake_each_other_keep_the_order_of_the_link(make, node):
    worker = make()
    chain, ids = saved(node, worker, 12, "order")
    second = threading.Event()

    def hold(sequence):
        if sequence % 3 == 1:
            second.wait(LONG_S)
            second.clear()
        elif sequence % 3 == 2:
            second.set()
    node.hold_replies = hold
    target = worker.ids(12)
    copy = worker.rows(ids).clone()
    assert worker.load(chain, 0, 768, target) == set()
    assert torch.equal(worker.rows(target), copy)


def test_damage_on_the_way_is_a_miss_of_that_block_and_the_link_lives(make, node):
    worker = make()
    chain, ids = saved(node, worker, 4, "damage")
    copy, target = worker.rows(ids).clone(), [i for i in range(160) if i not in ids][:16]
    node.damage = 3 * BLOCK_BYTES + 4097  # in the region of the last block
    assert worker.load(chain, 0, 256, target) == set(target[4:]), "three came, less a tail of two"
    node.damage = None
    assert (worker.count("damaged_blocks"), worker.count("transport_nccl")) == (1, 1)
    assert worker.by_nccl().peer.broken == ""
    assert worker.load(chain, 0, 256, target) == set()
    assert torch.equal(worker.rows(target), copy)


class DamagingComm:
    """Changes a byte of what it sends, once `on`."""

    def __init__(self, comm, window):
        self._comm, self._window, self.stream, self.on = comm, window, None, False

    def send(self, spans):
        if self.on:
            self._window[spans[0].offset + 12345] ^= 64
        return self._comm.send(spans)

    def __getattr__(self, name):
        return getattr(self._comm, name)


def test_store_damaged_on_the_way_is_not_taken_for_good(make, node):
    comms = []

    def connect_damaging(comm_id, window, *arguments):
        comms.append(DamagingComm(connect(comm_id, window, *arguments), window))
        return comms[-1]
    worker = make(connect_with=connect_damaging)
    worker.by_nccl()
    comms[1].on = True
    chain = worker.chain(2, "bad")
    worker.save(chain, 0, 2, worker.ids(2))
    wait_until(lambda: worker.count("saved_miss_blocks") == 1)
    assert worker.count("saved_ok_blocks") == 1
    assert node.stored == {chain.keys(1, 2)}


def test_link_that_the_node_breaks_costs_a_miss_and_the_next_way_carries_the_pages(make, node):
    worker = make()
    chain, ids = saved(node, worker, 4, "broken")
    copy, target = worker.rows(ids).clone(), [i for i in range(160) if i not in ids][:16]
    node.refuse_links = True
    node.break_links()
    first = worker.load(chain, 0, 256, target)
    assert first in (set(target), set()), "all of it, or by the next way already"
    wait_until(lambda: worker.core.access.transport().name == "shared-memory")
    assert worker.load(chain, 0, 256, target) == set()
    assert torch.equal(worker.rows(target), copy)
    node.refuse_links = False
    worker.by_nccl()
    assert worker.load(chain, 0, 256, target) == set()
    assert torch.equal(worker.rows(target), copy)
    assert (node.sessions, worker.count("transport_nccl")) == (1, 2)


def test_node_that_answers_but_never_sends_breaks_the_link_in_its_time(make, node):
    worker = make()
    chain, ids = saved(node, worker, 4, "mute")
    target = [i for i in range(160) if i not in ids][:16]
    link, = node.links.values()
    mute, go_on = link.down, threading.Event()
    mute._work.put(lambda: go_on.wait(LONG_S))
    worker.by_nccl().peer.timeout_s = 0.5
    assert worker.load(chain, 0, 256, target) == set(target)
    wait_until(lambda: worker.core.access.transport().name != "nccl")
    go_on.set()
    worker.by_nccl()
    assert worker.load(chain, 0, 256, target) == set()
    assert torch.equal(worker.rows(target), worker.rows(ids))


def test_store_without_a_reply_breaks_the_link_and_later_ones_go(make, node):
    worker = make()
    way = worker.by_nccl()
    node.fail_with = grpc.StatusCode.RESOURCE_EXHAUSTED
    worker.save(worker.chain(2, "refused"), 0, 2, worker.ids(2))
    wait_until(lambda: way.peer.broken)
    node.fail_with = None
    saved(node, worker, 3, "later")
    assert node.sessions == 1


def test_saves_in_flight_arrive_in_order_and_let_go_of_the_blocks(make, node):
    writer, reader = make(window_blocks=8), make()
    writer.by_nccl()
    reader.by_nccl()
    chain, ids = writer.chain(4, "flight"), writer.ids(4)
    node.answering.clear()
    writer.save(chain, 0, 4, ids, "a")
    writer.core.hold_saved(StepJobs(held=["a"]))
    assert writer.core.take_saved() == set()
    node.answering.set()
    wait_until(lambda: writer.core.take_saved() == {"a"})
    assert writer.count("saved_ok_blocks") == 4
    target = reader.ids(4)
    assert reader.load(chain, 0, 256, target) == set()
    assert torch.equal(reader.rows(target), writer.rows(ids))


def test_cancelled_load_leaves_the_link_in_order(make, node):
    worker = make()
    chain, ids = saved(node, worker, 12, "cancelled")
    copy, target = worker.rows(ids).clone(), [i for i in range(160) if i not in ids][:48]
    go = threading.Event()
    node.hold_sends = lambda: go.wait(LONG_S)
    worker.start_load(chain, 0, 768, target, "dropped")
    worker.core.requests_finished({"dropped"})
    go.set()
    wait_until(worker.core.take_results)
    rest = [i for i in range(160) if i not in ids][48:96]
    assert worker.load(chain, 0, 768, rest) == set()
    assert torch.equal(worker.rows(rest), copy)
    assert worker.count("transport_nccl") == 1


def test_no_link_to_a_node_on_the_same_gpu_nor_when_it_is_not_wanted(make, node):
    link = make().client.link
    same, other = (PeerOptions(uuid, connect, 1 << 20) for uuid in (UUID, b"w" * 16))
    assert offered(link, other) and not offered(link, same)
    plain = make(peers=False)
    assert plain.core.access.transport().name == "shared-memory"
    assert plain.core.access._keeper is None


def test_window_too_small_for_the_model_is_said(make, node, caplog):
    worker = make(window_blocks=1)
    wait_until(lambda: "a window must have" in caplog.text)
    assert worker.core.access.transport().name == "shared-memory"


def test_other_end_that_does_not_come_is_said_and_tried_again(make, node, caplog):
    tries = []

    def connect_late(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise PeerError("the other end has not come within 3 s")
        return connect(*arguments)
    worker = make(connect_with=connect_late)
    worker.by_nccl()
    assert "no peer link: the other end has not come" in caplog.text

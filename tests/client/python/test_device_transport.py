"""Device segments from the worker's side, on a pretended GPU: which bytes the node is sent to for
every layout of vLLM, when the engine's blocks are let go, and what happens when the node refuses.

The node on a real GPU is tested by tests/gpu.
"""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from cache_worker import CacheWorker, stored, wait_until
from fake_device_node import UUID, FakeDeviceNode, MemfdGpu
from fake_node import PATIENT, READY_S
from flashquant import device_memory
from flashquant.device_memory import DeviceMemoryError
from flashquant.device_segment import DeviceMemory
from flashquant.keys import Namespace
from flashquant.link import SessionSpec
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm import worker_core
from flashquant.vllm.gpu_cache import gpu_cache
from flashquant.vllm.jobs import StepJobs
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.staging import smallest_segment
from flashquant.vllm.transport import Direct

LAYERS, HEADS, SIZE, BLOCKS = 2, 3, 64, 40


def hnd(gpu, tokens):
    """(B, H, N, 2D), a layer an allocation."""
    shape = (BLOCKS, HEADS, tokens, 2 * SIZE)
    return [halves(gpu, shape) for _ in range(LAYERS)]


def nhd(gpu, tokens):
    """The same, memory by token first."""
    shape = (BLOCKS, tokens, HEADS, 2 * SIZE)
    return [halves(gpu, shape).permute(0, 2, 1, 3) for _ in range(LAYERS)]


def key_value_first(gpu, tokens):
    """(2, B, N, H, D): FlashAttention to 0.21."""
    return [halves(gpu, (2, BLOCKS, tokens, HEADS, SIZE)) for _ in range(LAYERS)]


def block_first(gpu, tokens):
    """(B, 2, N, H, D): 0.22 to 0.25, FlashInfer."""
    return [halves(gpu, (BLOCKS, 2, tokens, HEADS, SIZE)) for _ in range(LAYERS)]


def block_first_by_head(gpu, tokens):
    """FlashInfer's HND: memory (B, 2, H, N, D)."""
    shape = (BLOCKS, 2, HEADS, tokens, SIZE)
    return [halves(gpu, shape).permute(0, 1, 3, 2, 4) for _ in range(LAYERS)]


def blnhc(gpu, tokens):
    """All layers of a block in one buffer."""
    return list(halves(gpu, (BLOCKS, LAYERS, tokens, HEADS, 2 * SIZE)).permute(1, 0, 3, 2, 4))


def blhnc(gpu, tokens):
    """The same, by head."""
    return list(halves(gpu, (BLOCKS, LAYERS, HEADS, tokens, 2 * SIZE)).transpose(0, 1))


def lhbnc(gpu, tokens):
    """A head's blocks side by side."""
    return list(halves(gpu, (LAYERS, HEADS, BLOCKS, tokens, 2 * SIZE)).transpose(1, 2))


LAYOUTS = [hnd, nhd, key_value_first, block_first, block_first_by_head, blnhc, blhnc, lhbnc]


def halves(gpu, shape):
    """Random BF16 in memory of the GPU."""
    tensor = gpu.alloc(2 * int(np.prod(shape))).view(torch.bfloat16).view(shape)
    return tensor.copy_(torch.randn(shape))


NAMESPACE = Namespace("device-test", LAYERS, HEADS, SIZE, pb.DTYPE_BF16)


class Worker(CacheWorker):
    """A worker core over a KV cache on the pretended GPU."""

    def __init__(self, node, gpu, layout=nhd, tokens=16, deadlines=PATIENT):
        self.tensors = layout(gpu, tokens)
        view = RowsView(self.tensors, BLOCKS, HEADS, SIZE)
        spec = SessionSpec("device-test", NAMESPACE, (0, LAYERS), (0, HEADS), segment_bytes=8 << 20,
                           device=DeviceMemory(view.memory()),
                           bytes_beside_device=smallest_segment(view))
        super().__init__(node.endpoint, view, spec, deadlines)


@pytest.fixture(name="gpu")
def gpu_fixture(monkeypatch):
    gpu = MemfdGpu()
    gpu.patch(monkeypatch)
    return gpu


@pytest.fixture(name="node")
def node_fixture(tmp_path):
    node = FakeDeviceNode(tmp_path / "s", 2, HEADS, SIZE)
    node.fingerprint = NAMESPACE.fingerprint()
    node.start()
    yield node
    node.stop()


@pytest.fixture(name="make")
def make_fixture(node, gpu):
    workers = []

    def make(*args, **kwargs):
        workers.append(Worker(node, gpu, *args, **kwargs))
        return workers[-1]
    yield make
    for worker in workers:
        worker.core.shutdown()


@pytest.mark.parametrize("tokens", [16, 64, 128])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_rows_come_back_in_other_blocks(make, node, layout, tokens):
    writer, reader = make(layout, tokens), make(nhd, tokens)
    chain = writer.chain(8, f"{layout.__name__}{tokens}")
    count = 512 // tokens
    ids, target = torch.randperm(BLOCKS)[:count].tolist(), torch.randperm(BLOCKS)[:count].tolist()
    writer.save(chain, 0, 8, ids)
    stored(node, chain, 8)
    others = [i for i in range(BLOCKS) if i not in target]
    before = reader.rows(others).clone()
    assert reader.load(chain, 0, 512, target) == set()
    assert torch.equal(reader.rows(target), writer.rows(ids))
    assert torch.equal(reader.rows(others), before)
    assert (writer.count("transport_device"), reader.count("transport_device")) == (1, 1)


def test_load_behind_a_local_prefix_inside_a_block_leaves_it_alone(make, node):
    writer, reader = make(), make()
    chain = writer.chain(4, "prefix")
    writer.save(chain, 0, 4, list(range(16)))
    stored(node, chain, 4)
    before = reader.rows(list(range(16))).clone()
    assert reader.load(chain, 80, 256, list(range(5, 16))) == set()
    now, source = reader.rows(list(range(16))), writer.rows(list(range(16)))
    assert torch.equal(now[..., :80, :], before[..., :80, :])
    assert torch.equal(now[..., 80:, :], source[..., 80:, :])


def test_node_refuses_pages_travel_through_host_memory(make, node, caplog):
    node.refuse = "too many mappings"
    writer, reader = make(), make(hnd)
    chain = writer.chain(4, "refused")
    writer.save(chain, 0, 4, list(range(16)))
    stored(node, chain, 4)
    assert reader.load(chain, 0, 256, list(range(20, 36))) == set()
    assert torch.equal(reader.rows(list(range(20, 36))), writer.rows(list(range(16))))
    assert reader.count("transport_shared_memory") == 1
    assert "refused the engine's GPU memory: too many mappings" in caplog.text


class SlowLoad:
    """A load whose deadline has passed while the node is at it, about to write."""

    def __init__(self, make, node):
        self.worker, self.target = make(deadlines=replace(PATIENT, load_s=1.0)), range(20, 36)
        chain = self.worker.chain(4, "slow")
        self.worker.save(chain, 0, 4, list(range(16)))
        stored(node, chain, 4)
        begun, self._may_write, self._wrote = (threading.Event() for _ in range(3))
        node.before_load = lambda: begun.set() or self._may_write.wait(READY_S)
        node.after_load = self._wrote.set
        while not begun.is_set():  # a machine that stands still may lose the whole second
            assert self.worker.client.wait_ready(READY_S)
            link = self.worker.client.link
            self.worker.start_load(chain, 0, 256, list(self.target))
            wait_until(lambda: begun.is_set() or self.worker.core.take_results())
        wait_until(lambda: self.worker.client.link is not link)

    def rows(self):
        return self.worker.rows(list(self.target)).clone()

    def reported(self):
        wait_until(self.worker.core.take_results)
        assert self.worker.core.take_bad_blocks() == set(self.target)
        return self.rows()

    def written(self):
        """What is there when the node has ended."""
        self._may_write.set()
        wait_until(self._wrote.is_set)
        return self.rows()


def test_load_given_up_is_reported_only_when_the_node_has_ended(make, node):
    load = SlowLoad(make, node)
    before = load.rows()
    assert load.worker.core.take_results() == set()
    later = load.written()
    assert not torch.equal(later, before)
    assert torch.equal(load.reported(), later)


def test_load_given_up_control_without_the_fence_blocks_change_after_the_report(
        make, node, monkeypatch):
    monkeypatch.setattr(Direct, "settle", lambda self, give_up: None)
    load = SlowLoad(make, node)
    at_report = load.reported()
    assert not torch.equal(load.written(), at_report)


def test_held_request_is_named_once_when_its_saves_have_ended(make, node):
    worker = make()
    chain = worker.chain(4, "held")
    may_store, store = threading.Event(), worker.client.store
    worker.client.store = lambda *args: may_store.wait() and store(*args)
    worker.save(chain, 0, 4, list(range(16)), "a")
    worker.core.hold_saved(StepJobs(held=["a", "never-saved"]))
    assert worker.core.take_saved() == {"never-saved"}
    may_store.set()
    wait_until(lambda: worker.core.take_saved() == {"a"})
    assert worker.core.take_saved() == set()


def test_requests_whose_saves_have_ended_leave_nothing_behind(make):
    worker = make()
    worker.save(worker.chain(4, "ended"), 0, 4, list(range(16)), "a")  # finishes without a hold
    wait_until(lambda: not worker.core._saver._running)


def test_preempted_request_is_waited_for(make, node, caplog, monkeypatch):
    worker = make()
    chain = worker.chain(4, "preempted")
    may_store, store = threading.Event(), worker.client.store
    worker.client.store = lambda *args: may_store.wait() and store(*args)
    worker.save(chain, 0, 4, list(range(16)), "a")
    worker.core.wait_preempted(StepJobs(preempted=["b"]))
    assert "still run" not in caplog.text, "it waited for another request"
    monkeypatch.setattr(worker_core, "PREEMPTED_S", 60.0)
    threading.Timer(0.2, may_store.set).start()
    worker.core.wait_preempted(StepJobs(preempted=["a"]))
    assert chain.keys(3, 4) in node.stored


def test_packet_without_event_and_with(gpu):
    view = RowsView(blnhc(gpu, 16), BLOCKS, HEADS, SIZE)
    packet = DeviceMemory(view.memory(), b"e" * 64).packet(b"s" * 16)
    assert len(packet) == 128 + 72 + 16 * LAYERS
    assert packet[60:64] == b"\1\0\0\0" and packet[64:128] == b"e" * 64
    assert DeviceMemory(view.memory()).packet(b"s" * 16)[60:128] == bytes(68)
    with pytest.raises(DeviceMemoryError, match="64 bytes, got 3"):
        DeviceMemory(view.memory(), b"abc")


def test_cache_is_shared_unless_blocks_may_go_or_the_driver_refuses(gpu, caplog):
    shape = (BLOCKS, HEADS, SIZE)
    tensors = nhd(gpu, 16)
    assert gpu_cache(tensors, *shape, blocks_stay=True).shared.uuid == UUID
    assert gpu_cache(tensors, *shape, blocks_stay=False).shared is None
    assert "a sliding window frees blocks" in caplog.text
    wide = [halves(gpu, (BLOCKS, HEADS, 16, 2 * SIZE + 2))[..., :2 * SIZE] for _ in range(LAYERS)]
    assert gpu_cache(wide, *shape, blocks_stay=True).shared is None
    assert "not multiples of 256, 16, 16" in caplog.text


def test_without_a_driver_it_is_said(monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: cannot open")
    monkeypatch.setattr(device_memory.ctypes, "CDLL", no_library)
    device_memory.driver.cache_clear()
    with pytest.raises(DeviceMemoryError, match="no CUDA driver: libcuda.so.1: cannot open"):
        device_memory.device_uuid(1)


def test_driver_error_is_named_with_its_words(monkeypatch):
    class Library:
        """A driver whose every call fails."""

        def cuGetErrorString(self, code, text):
            text._obj.value = b"out of memory"

        def __getattr__(self, name):
            return lambda *arguments: 2
    monkeypatch.setattr(device_memory, "driver", Library)
    with pytest.raises(DeviceMemoryError, match=r"cuMemGetAddressRange_v2: out of memory \(2\)"):
        device_memory.allocation_of(1)


def test_layer_over_two_allocations_is_refused(gpu):
    layer, = hnd(gpu, 16)[:1]
    memory = RowsView([layer], BLOCKS, HEADS, SIZE).memory()
    with pytest.raises(DeviceMemoryError, match="it spans several"):
        DeviceMemory([replace(memory[0], size=memory[0].size + 1)])


@pytest.mark.parametrize("shape", [(40, 16, 3, 128), (3, 40, 16, 3, 64), (2, 2, 16, 3, 64),
                                   (40, 576)])
def test_unknown_shape_is_refused(shape):
    with pytest.raises(ValueError, match="KV tensor of shape"):
        RowsView([torch.zeros(shape)], 40, HEADS, SIZE)


def test_strides_that_the_node_cannot_address_are_refused():
    view = RowsView([torch.zeros(40, HEADS, 16, 2 * SIZE + 2)[..., :2 * SIZE]], 40, HEADS, SIZE)
    with pytest.raises(ValueError, match="not multiples of 256, 16, 16"):
        view.device_layout()

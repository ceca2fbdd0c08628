"""A worker as vLLM's is to the connector: a paged KV cache, block tables, hooks once per step.

On a GPU its cache is what FlashAttention has in vLLM 0.26 and later (a strided (B, H, N, 2D) per
layer) and the node is given it by CUDA IPC; on a CPU the same code goes through shared memory.
"""

import enum
import time
from pathlib import Path

import numpy as np
import torch

from pages import LIMITS, make_rows, page_errors
from shapes import Shape

from flashquant.client import Client, Deadlines
from flashquant.codec_set import CodecSet
from flashquant.device_segment import DeviceMemory
from flashquant.keys import BLOCK_TOKENS, KeyChain, root_key
from flashquant.link import SessionSpec
from flashquant.peer_link import PeerOptions
from flashquant.vllm.geometry import rows_packing
from flashquant.vllm.gpu_cache import gpu_cache
from flashquant.vllm.jobs import LoadJob, SaveJob, StepJobs
from flashquant.vllm.rows_view import RowsView
from flashquant.vllm.staging import smallest_segment
from flashquant.vllm.transport import Transport
from flashquant.vllm.worker_core import WorkerCore
from flashquant.wire import Profile

# A node under compute-sanitizer takes a minute to load a codec set, and a machine may be held up.
DEADLINES = Deadlines(lookup_s=60.0, load_s=60.0, store_s=60.0, connect_s=80.0)
READY_S = 100.0
STAGING_BYTES = {"cuda": 1 << 30, "cpu": 128 << 20}  # a CPU is only there to test the rest
BLOCKS_PER_CHECK = 32
POISON = -23131  # 0xA5A5


class Waits(enum.Enum):
    """Who waits for the engine's stream before the node touches its blocks."""

    CONNECTOR = enum.auto()  # as in vLLM: an event a job, on the job's thread
    NODE = enum.auto()       # the event that the segment is registered with
    NOBODY = enum.auto()     # a control for tests


class PagedWorker:
    """One thread. `shared`: whether the node may use the cache in place (GPU only)."""

    def __init__(self, endpoint: str, shape: Shape, codec_set: CodecSet | None, device: str,
                 blocks: int, chunk_tokens: int = 16, shared: bool = True,
                 waits: Waits = Waits.CONNECTOR, staging_bytes: int | None = None,
                 peers: PeerOptions | None = None) -> None:
        """`blocks`: of 64 tokens; `peers`: links to a node on another GPU. RuntimeError: no
        session within READY_S."""
        self.shape, self.device, self.chunk_tokens = shape, torch.device(device), chunk_tokens
        self.chunks_per_block = BLOCK_TOKENS // chunk_tokens
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # as vLLM does
        size = (blocks * self.chunks_per_block, chunk_tokens, shape.heads, 2 * shape.head_size)
        self.tensors = [torch.full(size, POISON, dtype=torch.int16, device=device)
                        .view(torch.float16).permute(0, 2, 1, 3) for _ in range(shape.layers)]
        self.free = list(range(size[0]))
        self._event = torch.cuda.Event(interprocess=True) if waits is Waits.NODE else None
        self.view, memory = self._register(shared)
        self.namespace = shape.namespace(codec_set.id if codec_set else b"")
        self.namespace_name = f"gpu-test/{shape.name}"
        spec = SessionSpec(
            self.namespace_name, self.namespace, (0, shape.layers), (0, shape.heads),
            "paged-worker", max(staging_bytes or STAGING_BYTES[self.device.type],
                                smallest_segment(self.view)), device=memory,
            bytes_beside_device=smallest_segment(self.view))
        self.client = Client(endpoint, spec, DEADLINES)
        self.core = WorkerCore(self.client, self.view, rows_packing(shape.head_size), chunk_tokens,
                               self.device if self._connector_waits(waits) else None, peers)
        self.counters: dict[str, float] = {}
        self.bad_blocks: set[int] = set()
        if not self.client.wait_ready(READY_S):
            raise RuntimeError(f"no session at {endpoint} within {READY_S:.0f} s")
        self._tenant = self.client.link.info.tenant  # of keys while there is no session, too

    def _register(self, shared: bool) -> tuple[RowsView, DeviceMemory | None]:
        rows = len(self.tensors[0]), self.shape.heads, self.shape.head_size
        if self.device.type == "cpu":
            return RowsView(self.tensors, *rows), None
        cache = gpu_cache(self.tensors, *rows, blocks_stay=True)
        if not shared:
            return cache.view, None
        if cache.shared is None:
            raise RuntimeError("the cache cannot be shared, see the log")
        if self._event is None:
            return cache.view, cache.shared
        self._event.record()
        return cache.view, DeviceMemory(cache.view.memory(), self._event.ipc_handle())

    def _connector_waits(self, waits: Waits) -> bool:
        return self.device.type == "cuda" and waits is Waits.CONNECTOR

    def _record(self) -> None:
        if self._event is not None:
            self._event.record()

    def wait_transport(self, name: str, timeout_s: float = READY_S) -> Transport:
        """Until pages go that way. RuntimeError: they do not within the timeout."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            way = self.core.access.transport()
            if way is not None and way.name == name:
                return way
            time.sleep(0.005)
        raise RuntimeError(f"transport {way and way.name} after {timeout_s:g} s, not {name}")

    def close(self) -> None:
        """Ends the session."""
        self.core.shutdown()

    # The engine's side: block tables and rows.

    def take_chunks(self, blocks: int) -> list[int]:
        """Engine blocks for so many blocks of 64 tokens, in random order; see free."""
        count = blocks * self.chunks_per_block
        picked = np.random.choice(len(self.free), count, replace=False)
        ids = [self.free[i] for i in picked]
        keep = np.delete(np.asarray(self.free), picked)
        self.free = keep.tolist()
        return ids

    def fill(self, ids: list[int], serials: list[int]) -> None:
        """Computes the rows of blocks `serials` into engine blocks `ids`."""
        self.fill_pieces(self.pieces(ids, serials))

    def fill_pieces(self, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """As fill, of pieces(); only launches, never waits for the GPU."""
        for index, numbers in pieces:
            for layer, tensor in enumerate(self.tensors):
                rows = make_rows(numbers, layer, self.shape.heads, self.shape.head_size)
                tensor[index] = self._chunked(rows)

    def poison(self, ids: list[int]) -> None:
        """Overwrites engine blocks with what no page holds."""
        index = torch.tensor(ids, device=self.device)
        for tensor in self.tensors:
            tensor.view(torch.int16)[index] = POISON

    def wrong_pages(self, ids: list[int], serials: list[int],
                    profile: Profile) -> tuple[int, float]:
        """(pages of engine blocks `ids` that are not those of blocks `serials`, largest error)."""
        limit, wrong, worst = LIMITS[profile], 0, 0.0
        for index, numbers in self.pieces(ids, serials):
            for layer, tensor in enumerate(self.tensors):
                rows = make_rows(numbers, layer, self.shape.heads, self.shape.head_size)
                found = tensor[index].unflatten(0, (-1, self.chunks_per_block))
                errors = page_errors(rows, found.transpose(1, 2).flatten(2, 3), limit == 0)
                wrong = wrong + (errors > limit).sum()
                worst = torch.maximum(errors.max(), torch.as_tensor(worst, device=self.device))
        return int(wrong), float(worst)

    def pieces(self, ids: list[int],
               serials: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(engine blocks, serials) on the device, a few blocks at a time."""
        pieces = []
        for first in range(0, len(serials), BLOCKS_PER_CHECK):
            numbers = serials[first:first + BLOCKS_PER_CHECK]
            begin = first * self.chunks_per_block
            chunks = ids[begin:begin + len(numbers) * self.chunks_per_block]
            pieces.append((torch.tensor(chunks, device=self.device),
                           torch.tensor(numbers, dtype=torch.int32, device=self.device)))
        return pieces

    def _chunked(self, rows: torch.Tensor) -> torch.Tensor:
        """[blocks][heads][64][2D] -> [chunks][heads][tokens][2D]."""
        split = rows.unflatten(2, (self.chunks_per_block, self.chunk_tokens))
        return split.transpose(1, 2).flatten(0, 1)

    # The connector's side.

    def chain(self, conversation: str, blocks: int) -> KeyChain:
        """Keys of a conversation's first blocks."""
        root = root_key(self.namespace.fingerprint(), self._tenant, conversation)
        chain = KeyChain(root)
        chain.extend(np.zeros(blocks * BLOCK_TOKENS, np.uint32))
        return chain

    def save(self, request: str, chain: KeyChain, begin: int, ids: list[int],
             profile: Profile) -> None:
        """Saves blocks [begin, ...) of a chain from `ids`; returns before they are stored."""
        end = begin + len(ids) // self.chunks_per_block
        job = SaveJob(request, begin, chain.keys(begin, end),
                      chain.keys(max(0, begin - 2), begin), ids, profile)
        self._record()
        self.core.stage_saves(StepJobs(saves=[job]))

    def finish(self, request: str) -> None:
        """The engine is done with a request; its blocks are free when `step` names it."""
        self.core.hold_saved(StepJobs(held=[request]))
        self.core.requests_finished({request})

    def submit_load(self, request: str, chain: KeyChain, blocks: int, ids: list[int],
                    floor: Profile) -> None:
        """Starts a load of the first blocks of a chain into `ids`."""
        self.load_range(request, chain.keys(0, blocks), 0, blocks, ids, floor)

    def load_range(self, request: str, keys: bytes, begin: int, end: int, ids: list[int],
                   floor: Profile = Profile.COMPACT) -> None:
        """Starts a load of blocks [begin, end) of a chain with these keys into `ids`."""
        job = LoadJob(request, keys, begin * BLOCK_TOKENS, end * BLOCK_TOKENS, ids,
                      floor)
        self._record()
        self.core.submit_loads(StepJobs(loads=[job]))

    def step(self) -> tuple[set[str], set[str], set[int]]:
        """(requests saved, requests loaded, engine blocks that did not load), since the last."""
        saved, loaded = self.core.take_saved(), self.core.take_results()
        bad = self.core.take_bad_blocks()
        for name, count in self.core.take_counters().items():
            self.counters[name] = self.counters.get(name, 0) + count
        return saved, loaded, bad

    def wait(self, request: str, loads: bool, timeout_s: float = READY_S) -> set[int]:
        """Steps until a request is loaded (or saved); engine blocks that did not load."""
        deadline_s, bad = time.monotonic() + timeout_s, set()
        while time.monotonic() < deadline_s:
            results = self.step()
            bad |= results[2]
            if request in results[loads]:
                return bad
            time.sleep(0.0002)
        raise RuntimeError(f"{request}: no report within {timeout_s:.0f} s")


def gpu_bytes_used(device: str) -> int:
    """Memory of the GPU that all processes use; 0 on a CPU."""
    if torch.device(device).type == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def node_binary(build: Path) -> Path:
    """flashquantd of a build folder."""
    return build / "bin" / "flashquantd"

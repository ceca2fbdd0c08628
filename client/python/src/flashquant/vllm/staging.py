"""Staging memory of one link: half a ring for saves, half buffers for loads. Thread-safe.

Sizes in bytes. A region of a call that got no reply is never given back: the link breaks and the
whole memory is given up (segment.py).
"""

import collections
import queue
import threading
from dataclasses import dataclass

import torch

from flashquant.keys import BLOCK_TOKENS
from flashquant.vllm.cache_view import WORD, WORD_BYTES, CacheView
from flashquant.vllm.rows_view import RowsView

View = CacheView | RowsView

LOAD_BUFFERS = 4        # or more, where the segment has room for as many
PIECE_BYTES = 12 << 20  # of a load: small enough to stay in the cache between node and engine


@dataclass(frozen=True)
class Region:
    """A piece of a segment."""

    offset: int
    size: int


class SaveRing:
    """Regions given out and taken back in the same order."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end
        self._lock = threading.Lock()  # guards the two below
        self._used: collections.deque[Region] = collections.deque()
        self._returned: set[int] = set()

    def take(self, size: int) -> Region | None:
        """Room for `size` bytes, or None when the ring is full."""
        with self._lock:
            offset = self._place(size)
            if offset is None:
                return None
            region = Region(offset, size)
            self._used.append(region)
            return region

    def give_back(self, region: Region) -> None:
        """Frees it, once all regions taken before it are free."""
        with self._lock:
            self._returned.add(region.offset)
            while self._used and self._used[0].offset in self._returned:
                self._returned.remove(self._used.popleft().offset)

    def _place(self, size: int) -> int | None:
        if not self._used:
            return self._begin if size <= self._end - self._begin else None
        tail, head = self._used[0].offset, self._used[-1].offset + self._used[-1].size
        if self._used[-1].offset < tail:  # wrapped: free room is between head and tail
            return head if head + size <= tail else None
        if head + size <= self._end:
            return head
        return self._begin if self._begin + size <= tail else None


class Buffers:
    """Regions of one size, for whoever waits for one."""

    def __init__(self, begin: int, count: int, size: int) -> None:
        """Side by side from offset `begin` on."""
        self._free: queue.SimpleQueue[Region | None] = queue.SimpleQueue()
        for i in range(count):
            self._free.put(Region(begin + i * size, size))

    def take(self, timeout_s: float) -> Region | None:
        """One that nobody has; None after the timeout, or when there will be none."""
        try:
            region = self._free.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if region is None:
            self.close()  # for whoever else waits
        return region

    def give_back(self, region: Region) -> None:
        """Ends take()."""
        self._free.put(region)

    def close(self) -> None:
        """From now on take() ends with None, sooner or later."""
        self._free.put(None)


def smallest_segment(view: View) -> int:
    """Bytes that a segment must have: one block each way."""
    return 2 * unit_bytes(view)


def unit_bytes(view: View) -> int:
    """A block of 64 tokens, or a chunk where that is longer; all layers."""
    return view.layers * view.shape.chunk_bytes * max(1, BLOCK_TOKENS // view.shape.tokens)


class Staging:
    """Memory cut for chunks of `view`."""

    def __init__(self, memory: memoryview, view: View) -> None:
        """The memory has at least smallest_segment(view) bytes."""
        self.words = torch.frombuffer(memory, dtype=WORD)
        self._view = view
        unit, blocks_of_unit = unit_bytes(view), max(1, view.shape.tokens // BLOCK_TOKENS)
        half = memory.nbytes // 2 // WORD_BYTES * WORD_BYTES
        units = max(1, min(PIECE_BYTES, half // LOAD_BUFFERS) // unit)
        self.load_blocks = units * blocks_of_unit         # of one load buffer
        self.save_blocks = half // unit * blocks_of_unit  # that the ring can hold at most
        self.ring = SaveRing(half, 2 * half)
        self.load_buffers = Buffers(0, half // (units * unit), units * unit)

    def chunks(self, region: Region, count: int) -> torch.Tensor:
        """The region as [layers][count][words of a chunk]."""
        begin, words = region.offset // WORD_BYTES, self._view.words
        size = self._view.layers * count * words
        return self.words[begin:begin + size].view(self._view.layers, count, words)

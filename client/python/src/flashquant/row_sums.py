"""Sums that show whether regions came over a peer link whole (proto: "Peer links", Sums)."""

import functools

import torch

FACTOR = 0x9E3779B97F4A7C15
WORD_BYTES = 8
COLUMNS = 1024
MASK = (1 << 64) - 1


def signed(number: int) -> int:
    """The int64 with the bits of a 64-bit number."""
    return (number & MASK ^ 1 << 63) - (1 << 63)


def row_sums(regions: torch.Tensor) -> torch.Tensor:
    """int64 [n]: of `regions` uint8 [n][bytes], bytes a multiple of 8; on their device, in the
    order of its stream.

    With i = COLUMNS * r + c, the sum of w[i] * (2 i + 1) is that of (2 COLUMNS r + 1) * (row r)
    and 2 c * (column c): two passes over the words and no copy of them. int64 wraps around.
    """
    words, device = regions.view(torch.int64), regions.device
    rows, tail = divmod(words.shape[1], COLUMNS)
    parts = []
    if rows:
        table = words[:, :rows * COLUMNS].view(len(words), rows, COLUMNS)
        parts = [table.sum(2) * factors(1, 2 * COLUMNS, rows, device),
                 table.sum(1) * factors(0, 2, COLUMNS, device)]
    if tail:
        begin = rows * COLUMNS
        parts.append(words[:, begin:] * factors(2 * begin + 1, 2, tail, device))
    return torch.cat(parts, 1).sum(1)


@functools.lru_cache(maxsize=64)
def factors(first: int, step: int, count: int, device: torch.device) -> torch.Tensor:
    """FACTOR * (first + step i) for i below `count`; there, whatever stream asks next."""
    numbers = torch.arange(count, dtype=torch.int64, device=device)
    numbers = (numbers * step + first) * signed(FACTOR)
    if numbers.is_cuda:
        torch.cuda.current_stream(device).synchronize()
    return numbers


def unsigned(sums: torch.Tensor) -> list[int]:
    """As the wire has them; waits for the device."""
    return [number & MASK for number in sums.tolist()]


class LaterSums:
    """Sums of regions that are launched by one thread, behind an event, and read by another."""

    def __init__(self, regions: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        """`regions` as row_sums takes them; `stream`: where sums are computed, None on a CPU."""
        self._regions, self._stream = regions, stream
        self._sums: torch.Tensor | None = None
        self._done: torch.cuda.Event | None = None

    def launch(self, after: torch.cuda.Event | None) -> None:
        """On a GPU, behind `after`, and returns at once; on a CPU, computes them."""
        if self._stream is None:
            self._sums = row_sums(self._regions)
            return
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            sums = row_sums(self._regions)
            self._sums = torch.empty(len(sums), dtype=torch.int64, pin_memory=True)
            self._sums.copy_(sums, non_blocking=True)
            self._done = self._stream.record_event()

    def values(self) -> list[int]:
        """Once the regions are there; waits for the device, or computes what was not launched."""
        if self._done is not None:
            self._done.synchronize()
        return unsigned(row_sums(self._regions) if self._sums is None else self._sums)

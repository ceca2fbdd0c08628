"""What the scheduler half tells the worker half. Pickled every step: small, bytes and ints only."""

from dataclasses import dataclass, field

from flashquant.keys import KEY_BYTES
from flashquant.wire import Profile


@dataclass(frozen=True)
class LoadJob:
    """Load tokens [begin, end) of a chain into the engine's blocks `block_ids`."""

    request_id: str
    keys: bytes            # from the first block of the chain to the one that holds end - 1
    begin_token: int       # multiple of the engine's block size, as end_token
    end_token: int         # multiple of 64
    block_ids: list[int]   # of the engine, for [begin, end)
    floor: Profile


@dataclass(frozen=True)
class SaveJob:
    """Store consecutive blocks of a chain."""

    request_id: str
    first_block: int
    keys: bytes            # of the blocks to store
    preceding_keys: bytes  # of up to two blocks before them
    block_ids: list[int]   # of the engine, from the one that holds first_block's first token
    profile: Profile

    @property
    def blocks(self) -> int:
        """How many to store."""
        return len(self.keys) // KEY_BYTES


@dataclass(frozen=True)
class StepJobs:
    """Of one engine step."""

    loads: list[LoadJob] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)  # requests that lost their blocks
    held: list[str] = field(default_factory=list)  # finished ones whose blocks wait for saves

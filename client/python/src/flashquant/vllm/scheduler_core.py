"""Scheduler half of the connector: which prefix to load, which blocks to save. Pure Python.

One object per engine, used by the scheduler's thread only. Blocks here are FlashQuant blocks of
64 tokens unless they are called engine blocks; ranges are [begin, end).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from flashquant.keys import BLOCK_TOKENS, KeyChain
from flashquant.vllm.jobs import LoadJob, SaveJob
from flashquant.vllm.options import Options, Policy, policy_of
from flashquant.vllm.provenance import Provenance
from flashquant.wire import Profile

NEVER = 1 << 40       # a block index that no request reaches
ANSWER_LIFE_S = 5.0  # an answer older than this is asked for again


class Lookups(Protocol):
    """What the core needs of a client; tests give a fake."""

    def root(self, salt: str) -> bytes | None:
        """Start of a key chain; None while there is no session."""

    def lookup_later(self, keys: bytes, floor: Profile) -> Any:
        """PendingLookup, or None = miss."""

    def max_blocks(self) -> int:
        """Blocks that one lookup may name."""


@dataclass
class Request:
    """What the core remembers of one request of the engine."""

    source: Any                      # vLLM's live request: token ids, salt, parameters
    policy: Policy
    root: bytes = b""
    chain: KeyChain | None = None
    extra_state: int = 0             # multimodal index of the extra-key function
    pending: Any = None              # lookup under way
    asked_blocks: int = -1           # of the last answer; -1 = none
    answered_s: float = 0.0
    matched_blocks: int = 0
    usable_blocks: int = 0
    local_tokens: int = 0            # computed by the engine itself when it last asked
    loading_until: int = 0           # token where the running load ends; 0 = none runs
    no_external: bool = False        # a load failed: recompute, never ask again
    gave_saves: bool = False         # the worker got save jobs of it
    saved_blocks: int = 0            # blocks before this one are stored or on their way
    profiles: Sequence[int] = ()     # per matched block: what a load delivers
    worst: Profile | None = None     # of the blocks its KV is computed from; None = not known yet


# (request, first token, end token, state) -> (bytes that tell the block apart, state).
# Raises UnkeyableError.
ExtraKeys = Callable[[Any, int, int, int], tuple[bytes, int]]


class UnkeyableError(Exception):
    """A request whose KV depends on what cannot be put into a key."""


@dataclass
class SchedulerCore:
    """See the head of the file. `block_tokens`: size of the engine's own blocks."""

    lookups: Lookups
    options: Options
    block_tokens: int
    extra_keys: ExtraKeys
    can_load: bool = True
    can_save: bool = True
    exact_only: bool = False  # the engine's bytes cannot be read as numbers
    blocks_wait: bool = False  # saves may read the engine's blocks after the step
    clock: Callable[[], float] = time.monotonic
    counters: dict[str, int] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)
    _requests: dict[str, Request] = field(default_factory=dict)
    _loads: list[LoadJob] = field(default_factory=list)
    _held: list[str] = field(default_factory=list)

    # Hooks, in the order the engine calls them.

    def add_request(self, source: Any) -> None:
        """Starts the lookup, so that the answer is there when the request is scheduled."""
        self._requests.pop(source.request_id, None)
        request = self._request(source)
        if request and self.can_load and not skips_cache(source):
            self._ask(request)

    def matched_tokens(self, source: Any, computed_tokens: int) -> tuple[int | None, bool]:
        """(tokens to load beyond `computed_tokens`, whether in the background); None = later."""
        request = self._request(source)
        if request is None or not self.can_load or skips_cache(source):
            return 0, False
        if request.loading_until:
            self._load_failed(request, computed_tokens)
        request.local_tokens, request.worst = computed_tokens, None
        if request.no_external or not self._answered(request):
            return (0, False) if request.pending is None else (None, False)
        end = request.usable_blocks * BLOCK_TOKENS // self.block_tokens * self.block_tokens
        external = end - computed_tokens
        return (external, True) if external >= BLOCK_TOKENS else (0, False)

    def allocated(self, source: Any, block_ids: Sequence[int], external_tokens: int) -> None:
        """Queues the load for which the engine has allocated its blocks."""
        if external_tokens <= 0:
            return
        request = self._requests[source.request_id]
        begin, end = request.local_tokens, request.local_tokens + external_tokens
        ids = list(block_ids[begin // self.block_tokens:end // self.block_tokens])
        # The engine waits for this job from now on: what cannot be loaded must still be reported.
        keys = request.chain.keys(0, -(-end // BLOCK_TOKENS)) if request.chain else b""
        self._loads.append(LoadJob(source.request_id, keys, begin, end, ids,
                                   request.policy.floor))
        request.loading_until = end
        self._count("load_requests")
        self._count("load_tokens", external_tokens)

    def take_loads(self) -> list[LoadJob]:
        """Loads since the last step. Cannot fail: the engine waits for each of them."""
        loads, self._loads = self._loads, []
        return loads

    def save_jobs(self, progress: Iterable[tuple[str, int, int]],
                  block_ids: Callable[[str], Sequence[int]]) -> list[SaveJob]:
        """Saves of one engine step.

        `progress`: (request, tokens computed before the step, tokens computed after it) of all
        scheduled requests; `block_ids(request)`: its engine blocks, asked for only when needed.
        """
        saves = []
        for request_id, before, after in progress:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if request.loading_until:
                self._load_ended(request, before)
            if self.can_save and (job := self._save_job(request, before, after, block_ids)):
                saves.append(job)
                request.gave_saves = True
        return saves

    def finished(self, request_id: str) -> bool:
        """Forgets a finished request; whether its blocks must wait for its saves.

        Not while it loads: the engine keeps the blocks for that anyway, and frees them once; the
        saves from before were waited for when it lost its blocks.
        """
        request = self._requests.get(request_id)
        self.drop(request_id)
        wait = bool(self.blocks_wait and request and request.gave_saves
                    and not request.loading_until)
        if wait:
            self._held.append(request_id)
        return wait

    def take_held(self) -> list[str]:
        """Requests for which finished() said yes since the last step. Cannot fail."""
        held, self._held = self._held, []
        return held

    def drop(self, request_id: str) -> None:
        """Forgets a finished request; a load under way is ended by the worker."""
        self._requests.pop(request_id, None)

    def take_counters(self) -> dict[str, int]:
        """Counts since the last call."""
        counters, self.counters = self.counters, {}
        return counters

    # Requests and their keys.

    def _request(self, source: Any) -> Request | None:
        """State of a request; None when it cannot be cached."""
        request = self._requests.get(source.request_id)
        if request is None:
            try:
                policy = policy_of(self.options, getattr(source, "kv_transfer_params", None))
            except (ValueError, TypeError, AttributeError):
                policy = None
            if policy is None or (self.exact_only and policy.profile is not Profile.EXACT):
                self._count("refused_requests")
                return None
            request = self._requests[source.request_id] = Request(source, policy)
        return request

    def _extend_chain(self, request: Request, blocks: int) -> bool:
        """Makes keys up to `blocks`; False when there are none (no session, or unkeyable)."""
        root = self.lookups.root(getattr(request.source, "cache_salt", None) or "")
        if root is None:
            return False
        if request.chain is None or request.root != root:
            request.root, request.chain, request.extra_state = root, KeyChain(root), 0
        have = len(request.chain)
        if blocks <= have:
            return True
        tokens = request.source.all_token_ids[have * BLOCK_TOKENS:blocks * BLOCK_TOKENS]
        try:
            extras = self._extras(request, have, blocks)
            request.chain.extend(np.asarray(tokens, dtype=np.uint32), extras)
        except (UnkeyableError, ValueError, OverflowError, TypeError):
            request.no_external = True
            request.saved_blocks = NEVER
            self._count("unkeyable_requests")
            return False
        return True

    def _extras(self, request: Request, begin: int, end: int) -> list[bytes]:
        if is_plain(request.source):
            return []
        extras = []
        for block in range(begin, end):
            extra, request.extra_state = self.extra_keys(
                request.source, block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS,
                request.extra_state)
            extras.append(extra)
        return extras

    # Loads.

    def _loadable_blocks(self, request: Request) -> int:
        """Blocks worth asking for: at least one token must be left to compute."""
        tokens = request.source.num_tokens - 1
        if self.options.max_match_tokens:
            tokens = min(tokens, self.options.max_match_tokens)
        return min(tokens // BLOCK_TOKENS, self.lookups.max_blocks())

    def _ask(self, request: Request) -> None:
        """Starts a lookup of the request's prefix."""
        request.pending = None
        request.matched_blocks = request.usable_blocks = 0
        blocks = request.asked_blocks = self._loadable_blocks(request)
        request.answered_s = self.clock()
        if blocks == 0 or request.no_external or not self._extend_chain(request, blocks):
            return
        keys = request.chain.keys(0, blocks)
        request.pending = self.lookups.lookup_later(keys, request.policy.floor)
        self._count("lookups")

    def _answered(self, request: Request) -> bool:
        """Whether the answer is there; asks when there is none, or it is too old."""
        old = self.clock() - request.answered_s > ANSWER_LIFE_S
        if request.pending is None and (
                old or request.asked_blocks != self._loadable_blocks(request)):
            self._ask(request)
        if request.pending is None:
            return True
        if not request.pending.done():
            return False
        match, request.pending = request.pending.result(), None
        request.answered_s = self.clock()
        if match is not None:
            request.matched_blocks = min(match.matched_blocks, request.asked_blocks)
            request.usable_blocks = min(match.usable_blocks, request.matched_blocks)
            request.profiles = match.profiles
            request.saved_blocks = max(request.saved_blocks, request.matched_blocks)
        self._count("lookup_hits" if request.usable_blocks else "lookup_misses")
        return True

    def _load_failed(self, request: Request, computed_tokens: int) -> None:
        """The engine asks again although a load was started: nothing of it arrived."""
        request.no_external, request.loading_until = True, 0
        request.saved_blocks = min(request.saved_blocks, computed_tokens // BLOCK_TOKENS)
        self._count("failed_loads")

    def _load_ended(self, request: Request, computed_tokens: int) -> None:
        """The request runs: everything arrived, or a part (then the rest is saved again)."""
        if computed_tokens < request.loading_until:
            self._load_failed(request, computed_tokens)
        request.loading_until = 0
        first, end = request.local_tokens // BLOCK_TOKENS, computed_tokens // BLOCK_TOKENS
        for block, profile in enumerate(request.profiles[first:end], first):
            self.provenance.note(request.chain.keys(block, block + 1), Profile(profile))

    # Saves.

    def _save_job(self, request: Request, before: int, after: int,
                  block_ids: Callable[[str], Sequence[int]]) -> SaveJob | None:
        """Job for the full blocks that the step completes and that are not saved yet."""
        known = min(after, len(request.source.all_token_ids))
        begin, end = request.saved_blocks, known // BLOCK_TOKENS
        if end <= begin or not self._extend_chain(request, end):
            return None
        if request.worst is None:
            request.worst = self.provenance.worst(request.chain.keys(0, before // BLOCK_TOKENS))
        self.provenance.note(request.chain.keys(begin, end), request.worst)
        if not request.policy.save:
            request.saved_blocks = end
            return None
        if request.worst.own_floor > request.policy.profile.own_floor:
            self._count("tainted_blocks", end - begin)
            request.saved_blocks = end
            return None
        first_id = begin * BLOCK_TOKENS // self.block_tokens
        end_id = -(-end * BLOCK_TOKENS // self.block_tokens)
        request_id = request.source.request_id
        ids = list(block_ids(request_id)[first_id:end_id])
        if len(ids) != end_id - first_id:
            return None
        request.saved_blocks = end
        preceding = request.chain.keys(max(0, begin - 2), begin)
        self._count("save_blocks", end - begin)
        return SaveJob(request_id, begin, request.chain.keys(begin, end), preceding, ids,
                       request.policy.profile)

    def _count(self, name: str, amount: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + amount


def skips_cache(source: Any) -> bool:
    """Whether the request must compute its whole prompt (prompt_logprobs, some pooling)."""
    return bool(getattr(source, "skip_reading_prefix_cache", False))


def is_plain(source: Any) -> bool:
    """Whether token ids and salt alone decide the request's KV."""
    return not (getattr(source, "mm_features", None) or getattr(source, "lora_request", None)
                or getattr(source, "prompt_embeds", None) is not None)

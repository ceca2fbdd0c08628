#!/usr/bin/env python3
"""One worker under mixed load: continuous batches, random eviction, every loaded page checked.

    tests/gpu/worker_driver.py --endpoint E --shape 8b --codec-set FILE --log FILE [--device cuda]
        [--seconds 60] [--seed 1]

Appends one JSON object a second to the log, so that what a killed worker has done is known. Exit
code 1 when a page was wrong.
"""

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from pages import serial_of
from paged_worker import PagedWorker
from peers import peers_for
from shapes import SHAPES

from flashquant.codec_set import read_codec_set
from flashquant.keys import KeyChain
from flashquant.wire import Profile

BATCH = 6                # requests at a time
CONVERSATIONS = 48
PROFILES = (Profile.COMPACT, Profile.COMPACT, Profile.NEAR_LOSSLESS, Profile.EXACT,
            Profile.UNIVERSAL)


@dataclass
class Request:
    """A prompt that continues a conversation which others may have stored."""

    name: str
    conversation: str
    profile: Profile
    blocks: int
    ids: list[int]
    chain: KeyChain
    state: str = "loading"
    serials: list[int] = field(default_factory=list)


class Driver:
    """The engine's loop around a PagedWorker."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._random = random.Random(arguments.seed)
        np.random.seed(arguments.seed)
        self._limit = arguments.blocks // BATCH
        codec_set = read_codec_set(arguments.codec_set)
        self._worker = PagedWorker(arguments.endpoint, SHAPES[arguments.shape], codec_set,
                                   arguments.device, arguments.blocks,
                                   peers=peers_for(arguments.device, arguments.window_bytes))
        if arguments.window_bytes:
            self._worker.wait_transport("nccl")
        self._running: dict[str, Request] = {}
        self._saving: dict[str, Request] = {}
        self._started = 0
        self.totals = {"loaded_blocks": 0, "checked_pages": 0, "wrong_pages": 0,
                       "missed_blocks": 0, "saved_blocks": 0, "requests": 0, "worst_error": 0.0}

    def step(self) -> None:
        """One engine step: admit, take results, compute what is missing, save, finish."""
        while len(self._running) < BATCH and len(self._worker.free) >= (
                self._limit * self._worker.chunks_per_block):
            self._admit()
        saved, loaded, bad = self._worker.step()
        for name in saved:
            self._worker.free += self._saving.pop(name).ids
        for name in loaded:
            self._loaded(self._running.pop(name), bad)
        if not loaded:
            time.sleep(0.0002)

    def _admit(self) -> None:
        self._started += 1
        number = min(int(self._random.paretovariate(0.8)), CONVERSATIONS) - 1
        profile = PROFILES[number % len(PROFILES)]
        conversation = f"conversation-{number}-{profile.label}"
        blocks = self._random.randint(1, self._limit)
        ids = self._worker.take_chunks(blocks)
        self._worker.poison(ids)
        request = Request(f"r{self._started}", conversation, profile, blocks, ids,
                          self._worker.chain(conversation, blocks))
        request.serials = [serial_of(conversation, block) for block in range(blocks)]
        self._running[request.name] = request
        self._worker.submit_load(request.name, request.chain, blocks, ids, profile.own_floor)

    def _loaded(self, request: Request, bad: set[int]) -> None:
        """Checks what arrived; the rest is computed and saved, and the request ends."""
        per_block = self._worker.chunks_per_block
        good = next((i for i, chunk in enumerate(request.ids) if chunk in bad), len(request.ids))
        good //= per_block
        wrong, worst = self._worker.wrong_pages(request.ids[:good * per_block],
                                                request.serials[:good], request.profile)
        pages = good * self._worker.shape.layers * self._worker.shape.heads * 2
        for name, count in (("loaded_blocks", good), ("checked_pages", pages),
                            ("wrong_pages", wrong), ("missed_blocks", request.blocks - good),
                            ("requests", 1)):
            self.totals[name] += count
        self.totals["worst_error"] = max(self.totals["worst_error"], worst)
        self._worker.fill(request.ids[good * per_block:], request.serials[good:])
        if good < request.blocks:
            self._worker.save(request.name, request.chain, good, request.ids[good * per_block:],
                              request.profile)
            self.totals["saved_blocks"] += request.blocks - good
        self._saving[request.name] = request
        self._worker.finish(request.name)

    def report(self) -> dict[str, object]:
        """Totals so far; bytes are FP16."""
        return {**self.totals, "block_bytes": self._worker.shape.block_bytes,
                "counters": self._worker.counters}

    def close(self) -> None:
        """Ends the session."""
        self._worker.close()


def main() -> int:
    """Runs for the given time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--codec-set", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=96, help="of 64 tokens, in the KV cache")
    parser.add_argument("--window-bytes", type=int, default=0, help="of a link by NCCL; 0: none")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    driver = Driver(arguments)
    end_s = time.monotonic() + arguments.seconds
    next_s = 0.0
    with arguments.log.open("a", encoding="utf-8", buffering=1) as log:
        while time.monotonic() < end_s:
            driver.step()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + 1.0
                log.write(json.dumps(driver.report()) + "\n")
        log.write(json.dumps(driver.report()) + "\n")
    driver.close()
    return int(driver.totals["wrong_pages"] > 0)


if __name__ == "__main__":
    sys.exit(main())

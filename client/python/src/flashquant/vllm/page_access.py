"""What loader and saver share: the engine's cache and the way to the node that works now."""

import logging
import threading

import torch

from flashquant.client import Client
from flashquant.link import Link
from flashquant.vllm.geometry import Packing
from flashquant.vllm.inline import Inline
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import View
from flashquant.vllm.transport import Direct, Staged, Transport

log = logging.getLogger("flashquant")


class Counters:
    """Counts by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._counts: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Adds to one of them."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def take(self) -> dict[str, float]:
        """Counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
            return counts


class PageAccess:
    """See the head of the file. Thread-safe."""

    def __init__(self, client: Client, view: View, packing: Packing, block_tokens: int,
                 device: torch.device | None = None) -> None:
        """`device`: the GPU of the cache, on whose stream the engine works."""
        self.client, self.view, self.block_tokens, self.device = client, view, block_tokens, device
        self.counters = Counters()
        self.closing = threading.Event()
        self._packing = packing
        self._lock = threading.Lock()  # guards the three below
        self._transport: Transport | None = None
        self._link: Link | None = None  # that _transport was made for
        self._told = ""

    def transport(self) -> Transport | None:
        """The way to the node over the link that works now; None = no node, or no way."""
        link = self.client.link
        if link is None:
            return None
        with self._lock:
            if self._link is not link:
                self._link, self._transport = link, self._choose(link)
            return self._transport

    def lives(self, transport: Transport) -> bool:
        """Whether its link still works."""
        return self.client.link is transport.link

    def _choose(self, link: Link) -> Transport | None:
        """The best way that this node and this engine have in common."""
        try:
            transport = self._make(link)
        except ValueError as error:
            self._tell(f"nothing is cached: {error}", logging.WARNING)
            return None
        self.counters.add(f"transport_{transport.name.replace('-', '_')}")
        self._tell(f"transport {transport.name}", logging.INFO)
        return transport

    def _make(self, link: Link) -> Transport:
        if link.segment is None:
            return Inline(link, self.view, self._packing)
        staged = Staged(link, self.view, self._packing, self.device)
        if link.device_segment is None:
            return staged
        return Direct(link, self.view, staged, self.device)

    def _tell(self, text: str, level: int) -> None:
        """Logs it, once in a row."""
        if text != self._told:
            self._told = text
            log.log(level, "FlashQuant: %s", text)

    def placement(self, first_block: int, blocks: int) -> Placement:
        """Blocks of a chain in chunks of this cache."""
        return Placement(first_block, blocks, self.view.shape.tokens)

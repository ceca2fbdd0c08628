"""What loader and saver share: the engine's cache and the way to the node that works now."""

import logging
import threading

import torch

from flashquant.client import Client
from flashquant.link import Link
from flashquant.peer_link import PeerOptions
from flashquant.vllm.counters import Counters
from flashquant.vllm.geometry import Packing
from flashquant.vllm.inline import Inline
from flashquant.vllm.peer_keeper import PeerKeeper
from flashquant.vllm.peer_rows import PeerRows
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import View
from flashquant.vllm.transport import Direct, Staged, Transport

log = logging.getLogger("flashquant")


class PageAccess:
    """See the head of the file. Thread-safe."""

    def __init__(self, client: Client, view: View, packing: Packing, block_tokens: int,
                 device: torch.device | None = None, peers: PeerOptions | None = None) -> None:
        """`device`: the GPU of the cache, on whose stream the engine works; `peers`: how links
        to nodes on other GPUs are opened, None: not at all."""
        self.client, self.view, self.block_tokens, self.device = client, view, block_tokens, device
        self.counters = Counters()
        self.closing = threading.Event()
        self._packing = packing
        self._keeper = self._keep_peers(peers)
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
            return (self._keeper and self._keeper.way(link)) or self._transport

    def join(self, timeout_s: float) -> None:
        """Waits for what `closing` ends."""
        if self._keeper is not None:
            self._keeper.join(timeout_s)

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

    def _keep_peers(self, peers: PeerOptions | None) -> PeerKeeper | None:
        """Whatever keeps a better way than _transport where a node offers it."""
        if peers is None:
            return None
        try:
            rows = PeerRows(self.view)
        except ValueError as error:
            log.warning("FlashQuant: no peer links: %s", error)
            return None
        return PeerKeeper(self.client, rows, peers, self.device, self.counters, self.closing)

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

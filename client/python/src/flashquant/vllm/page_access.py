"""What loader and saver share: the engine's cache, its packing, the staging of the live link."""

import logging
import threading

from flashquant.client import Client
from flashquant.link import Link
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.cache_view import CacheView
from flashquant.vllm.geometry import Packing
from flashquant.vllm.placement import Placement
from flashquant.vllm.staging import Region, Staging
from flashquant.wire import pages_at

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

    def __init__(self, client: Client, view: CacheView, packing: Packing,
                 block_tokens: int) -> None:
        self.client, self.view, self.block_tokens = client, view, block_tokens
        self.counters = Counters()
        self._packing = packing
        self._lock = threading.Lock()  # guards the next two
        self._staging: Staging | None = None
        self._warned = False

    def staging(self) -> Staging | None:
        """Staging of the link that works now; None = no node, or none on this host."""
        link = self.client.link
        if link is None:
            return None
        with self._lock:
            if self._staging is None or self._staging.link is not link:
                self._staging = self._make_staging(link)
            return self._staging

    def lives(self, staging: Staging) -> bool:
        """Whether its link still works."""
        return self.client.link is staging.link

    def _make_staging(self, link: Link) -> Staging | None:
        if link.segment is not None:
            return Staging(link, self.view)
        if not self._warned:
            self._warned = True
            log.warning("FlashQuant: the node offers no shared memory (is it on another host?): "
                        "nothing is cached")
        return None

    def placement(self, first_block: int, blocks: int) -> Placement:
        """Blocks of a chain in chunks of this cache."""
        return Placement(first_block, blocks, self.view.shape.tokens)

    def region_bytes(self, placement: Placement) -> int:
        """Staging that its chunks need, all layers."""
        return placement.chunks * self.view.layers * self.view.shape.chunk_bytes

    def pages(self, staging: Staging, region: Region, placement: Placement) -> pb.Pages:
        """The blocks as they lie in `region`: [layers][chunks][bytes of a chunk]."""
        chunk_bytes = self.view.shape.chunk_bytes
        layout = self.view.shape.page_layout(self._packing, placement.chunks * chunk_bytes)
        offsets = region.offset + placement.indices() * chunk_bytes
        return pages_at(layout, offsets, placement.first_tokens(), staging.segment_id)

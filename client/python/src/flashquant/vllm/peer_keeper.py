"""Keeps a peer link open: one in each session, and another when it breaks, ever more rarely."""

import logging
import threading
import time

import torch

from flashquant.breaker import CircuitBreaker
from flashquant.client import Client
from flashquant.link import Link, LinkError
from flashquant.peer_comm import PeerError
from flashquant.peer_link import PeerLink, PeerOptions, offered, open_peer_link
from flashquant.vllm.counters import Counters
from flashquant.vllm.peer_rows import PeerRows
from flashquant.vllm.peer_way import Nccl

log = logging.getLogger("flashquant")

POLL_S = 0.2
STEADY_S = 10.0  # a link that lived so long says that the next will, too
END_S = 2.0       # an abort takes NCCL half a second


class PeerKeeper:
    """Its thread opens a link in whatever session there is, from the session's begin on."""

    def __init__(self, client: Client, rows: PeerRows, options: PeerOptions,
                 device: torch.device | None, counters: Counters,
                 closing: threading.Event) -> None:
        """`device`: of the engine, None on a CPU; `closing`: ends the thread and the link."""
        self._way: Nccl | None = None
        self._client, self._rows, self._options = client, rows, options
        self._device, self._counters, self._closing = device, counters, closing
        self._breaker = CircuitBreaker()
        self._wake = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._keep, name="fq-peer", daemon=True)
        self._thread.start()

    def way(self, link: Link) -> Nccl | None:
        """The transport of a session that works now."""
        way = self._way
        return way if way is not None and way.link is link and not way.peer.broken else None

    def join(self, timeout_s: float) -> None:
        """Waits for the end that `closing` has begun."""
        self._wake.set()
        self._thread.join(timeout_s)

    def _keep(self) -> None:
        while not self._closing.is_set():
            link = self._client.link
            wait_s = self._breaker.probe_wait_s()
            if link is None or wait_s > 0 or not offered(link, self._options):
                self._closing.wait(min(max(wait_s, POLL_S / 4), POLL_S))
                continue
            try:
                way = self._open(link)
            except (PeerError, LinkError, ValueError, RuntimeError) as error:  # the last: torch's
                self._breaker.failure()
                self._tell(f"no peer link: {error}")
                continue
            self._use(way)

    def _open(self, link: Link) -> Nccl:
        peer = open_peer_link(link, self._options, self._device or torch.device("cpu"))
        try:
            return Nccl(link, peer, self._rows, self._device, self._counters)
        except ValueError:
            self._close(link, peer)
            raise

    def _use(self, way: Nccl) -> None:
        """Until it breaks or the session ends."""
        peer, begin_s = way.peer, time.monotonic()
        self._wake.clear()
        peer.when_broken(self._wake.set)
        self._way = way
        self._counters.add("transport_nccl")
        log.info("FlashQuant: transport nccl")
        while not (peer.broken or self._closing.is_set() or self._client.link is not way.link):
            self._wake.wait(POLL_S)
            if peer.overdue():
                peer.break_link("an operation has not ended in time")
        self._way = None
        if peer.broken:
            self._tell(f"peer link broken: {peer.broken}; pages take another way")
        if time.monotonic() - begin_s > STEADY_S:
            self._breaker.success()
        self._breaker.failure()
        self._close(way.link, peer)

    def _tell(self, text: str) -> None:
        """Logs it, once in a row."""
        if text != self._told:
            self._told = text
            log.warning("FlashQuant: %s", text)

    @staticmethod
    def _close(link: Link, peer: PeerLink) -> None:
        if not peer.close(END_S):
            log.warning("FlashQuant: peer link %d: NCCL has not ended after %g s", peer.id, END_S)
        link.close_peer_link(peer.id)

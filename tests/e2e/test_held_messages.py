"""Messages that peers leave unfinished or never take: --max-message-bytes holds, others go on."""

import math
import time

import pytest
from hostile import MEMORY_GROWTH_MAX
from node_process import WAIT_SECONDS, eventually
from raw_client import BLOCK_BYTES, Session, chain, pb
from windowed_peer import WindowedPeer

ROOM = 32 << 20  # --max-message-bytes; twice that may be held (server/connections/open_requests.h)
KEYS = chain("held", 32)  # 4 MiB
CALLS = 30


@pytest.fixture
def node(start_node):
    return start_node(host_bytes="64MiB", max_message_bytes="32MiB", max_inline_bytes="16MiB")


def drive(peers: list[WindowedPeer], done, meanwhile) -> None:
    """Lets the peers go on until `done()` and then as long again, `meanwhile()` now and then."""
    begin, end = time.monotonic(), math.inf
    while time.monotonic() < end:
        for _ in range(50):
            if not any([peer.step() for peer in peers]):
                time.sleep(0.002)
        meanwhile()
        if end == math.inf and done():
            end = 2 * time.monotonic() - begin
        assert end < math.inf or time.monotonic() < begin + WAIT_SECONDS, "not done in time"


def test_requests_that_never_end(node):
    """Three peers with 30 Stores each that lack their last bytes, 45 MiB a peer: the room is 32."""
    with node.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        assert session.fetch(KEYS) == len(KEYS)
        before = node.rss_bytes()

        def others_go_on():
            assert session.fetch(KEYS) == len(KEYS)
            assert node.rss_bytes() < before + 2 * ROOM + MEMORY_GROWTH_MAX

        peers = [WindowedPeer(str(node.socket)) for _ in range(3)]
        message = b"x" * (2 << 20)
        for peer in peers:
            for _ in range(CALLS):
                peer.call("Store", message, sends=3 << 19, ends=False)
        flood = 'fq_connections_refused_total{reason="flood"}'
        drive(peers, lambda: sum(peer.sent for peer in peers) > ROOM
              and any(peer.hung_up for peer in peers)
              and node.status().counters[flood] >= 1, others_go_on)


def test_replies_that_are_never_taken(node):
    """30 Loads of 4 MiB by a peer whose window is 0, with the session of another: it gets 8."""
    with node.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        assert session.fetch(KEYS) == len(KEYS)
        lease = session.lookup(KEYS).lease_id
        before = node.rss_bytes()
        peer = WindowedPeer(str(node.socket), window=0)
        message = pb.LoadRequest(session_id=session.id, lease_id=lease,
                                 block_count=len(KEYS)).SerializeToString()
        for _ in range(CALLS):
            peer.call("Load", message, sends=1 << 20, ends=True)
        refused = 'fq_requests_total{code="RESOURCE_EXHAUSTED",method="Load"}'

        def others_go_on():
            assert session.fetch(KEYS) == len(KEYS)
            assert node.rss_bytes() < before + 2 * ROOM + MEMORY_GROWTH_MAX

        most = ROOM // (len(KEYS) * BLOCK_BYTES)
        drive([peer], lambda: node.status().counters[refused] >= CALLS - 2 * most, others_go_on)
        peer.socket.close()
        eventually(lambda: session.fetch(KEYS) == len(KEYS), "the room is free again")

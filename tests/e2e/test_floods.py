"""Floods: the node's memory stays within its limit and everybody else is served, during and after.

The limit holds over a whole file of floods, one after the other, on one node: what a flood leaves
behind counts against the next. Memory is the resident set of the node's process.
"""

import time
from collections.abc import Iterator

import grpc
import pytest
from authority import Authority
from floods import FLOODS, Flood, Target
from hostile import KEYS, MEMORY_GROWTH_MAX
from node_process import WAIT_SECONDS, Node, eventually, free_port
from raw_client import Session

FLOOD_SECONDS = 0.6
PEERS_MAX = 120  # of the 128 places of the default
REFUSED = "fq_connections_refused_total"


class Watched:
    """A node under floods: a client that stays connected, and the memory it had before them."""

    def __init__(self, node: Node, target: Target, channel: grpc.Channel) -> None:
        self.node, self.target = node, target
        self.session = Session(channel)
        self.session.store(KEYS)
        for _ in range(20):
            assert self.session.fetch(KEYS) == len(KEYS)
        self.before = node.rss_bytes()

    def growth(self) -> int:
        return self.node.rss_bytes() - self.before

    def serve(self, connect) -> None:
        """An old and a new client get right answers; memory is within its limit."""
        assert self.session.fetch(KEYS) == len(KEYS)
        with connect() as channel, Session(channel) as newcomer:
            assert newcomer.fetch(KEYS) == len(KEYS)
        assert self.growth() < MEMORY_GROWTH_MAX

    def withstand(self, flood: str, peers: int, reads: bool, connect) -> None:
        with Flood(self.target, flood, peers, reads):
            end = time.monotonic() + FLOOD_SECONDS
            while time.monotonic() < end:
                self.serve(connect)
        self.serve(connect)
        eventually(lambda: self.node.status().counters["fq_connections"] <= 2,
                   "the flood's connections end")


@pytest.fixture(scope="module")
def local() -> Iterator[Watched]:
    """A node on its Unix socket."""
    node = Node(host_bytes="16MiB").start()
    with node.channel() as channel:
        yield Watched(node, Target(path=str(node.socket)), channel)
    node.remove()


@pytest.fixture(scope="module")
def remote(tmp_path_factory) -> Iterator[tuple[Watched, object]]:
    """A node with TLS that wants certificates, a flooder who has one, and how others connect."""
    folder, authority, port = tmp_path_factory.mktemp("tls"), Authority(), free_port()
    (folder / "ca").write_bytes(authority.cert)
    node_files = authority.issue("node").write(folder, "node")
    flooder = authority.issue("flooder").write(folder, "flooder")
    client = authority.issue("client")
    node = Node(host_bytes="16MiB", listen=f"127.0.0.1:{port}", tls_cert=node_files["cert"],
                tls_key=node_files["key"], tls_client_ca=folder / "ca").start()

    def connect() -> grpc.Channel:
        return grpc.secure_channel(
            f"localhost:{port}",
            grpc.ssl_channel_credentials(authority.cert, client.key, client.cert),
            [("grpc.use_local_subchannel_pool", 1)])

    target = Target(port=port, ca=str(folder / "ca"), **flooder)
    with connect() as channel:
        yield Watched(node, target, channel), connect
    node.remove()


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "never reading"])
@pytest.mark.parametrize("peers", [1, 8, 64])
def test_ping_floods(peers, reads, local):
    """The flood that cost gRPC 7 KB a ping, however many send it and whether they read or not."""
    local.withstand("pings", peers, reads, local.node.channel)


@pytest.mark.parametrize("flood", [name for name in FLOODS if name != "pings"])
def test_other_floods(flood, local):
    """Every other kind, from nearly as many peers as there are places, none of which reads."""
    local.withstand(flood, PEERS_MAX, False, local.node.channel)


@pytest.mark.parametrize("flood", ["pings", "settings", "streams opened and reset",
                                   "a header without end", "no settings", "nothing at all"])
def test_floods_inside_tls(flood, remote):
    """TLS hides nothing from the filter; "nothing at all" leaves 32 handshakes half open."""
    watched, connect = remote
    watched.withstand(flood, 32, False, connect)


def test_floods_over_plain_tcp():
    """The same on --listen without TLS."""
    port = free_port()
    node = Node(host_bytes="16MiB", listen=f"127.0.0.1:{port}").start()
    with node.channel() as channel:
        watched = Watched(node, Target(port=port), channel)
        for flood in ("pings", "a header without end"):
            watched.withstand(flood, 64, False, node.channel)
    node.remove()


def test_refused_connections_are_counted_by_reason(local):
    """What the runbook's alert looks at: all the floods above have left their mark."""
    counters = local.node.status().counters
    for reason in ("flood", "protocol"):
        assert counters[f'{REFUSED}{{reason="{reason}"}}'] > 0, reason
    assert "connection_refused" in local.node.log


def test_more_connections_than_places(start_node):
    """Silent peers lose their places to a newcomer; those who have asked keep theirs."""
    node = start_node(host_bytes="16MiB", max_connections=8)
    with node.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        peers = [Target(path=str(node.socket)).connect(WAIT_SECONDS) for _ in range(100)]
        assert session.fetch(KEYS) == len(KEYS)
        with node.channel() as other, Session(other) as newcomer:
            assert newcomer.fetch(KEYS) == len(KEYS)
        counters = node.status().counters
        assert counters["fq_connections"] <= 8
        assert counters[f'{REFUSED}{{reason="limit"}}'] >= 92
        for peer in peers:
            peer.close()


def test_silent_connection_is_given_up(start_node):
    """Five seconds without HTTP/2, and its place is free again."""
    node = start_node(host_bytes="16MiB")
    begin = time.monotonic()
    with Target(path=str(node.socket)).connect(WAIT_SECONDS) as peer:
        while peer.recv(4096):
            pass
    assert time.monotonic() - begin > 4
    assert node.status().counters[f'{REFUSED}{{reason="timeout"}}'] == 1

"""A node fetches blocks that another one holds: real processes, over sockets and TLS."""

import threading
from dataclasses import dataclass

import grpc
import pytest
from authority import Authority, Identity
from node_process import Node, eventually, free_port, run_flashquantd
from raw_client import EXISTS, MISS, OK, Session, chain, open_request

KEYS = chain("moved", 24)
DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def pair(start_node) -> tuple[Node, Node]:
    """A node that sends eight blocks a message, and one that may fetch from it."""
    there = start_node(host_bytes="16MiB", max_inline_bytes="600KiB")
    return there, start_node(host_bytes="16MiB", fetch_from=there.endpoint)


def store(node: Node, keys: list[bytes]) -> None:
    """Eight blocks a message."""
    with node.channel() as channel, Session(channel) as session:
        for i in range(0, len(keys), 8):
            assert set(session.store(keys[i:i + 8], first_block_index=i)) == {OK}


def stopped_by(reply) -> grpc.StatusCode:
    return next(c for c in grpc.StatusCode if c.value[0] == reply.stopped_code)


def wait_until_reachable(session: Session, node: str) -> None:
    """A connection that broke comes back by itself, a second later at most."""
    probe = chain("probe", 1)
    eventually(lambda: not session.fetch_from(node, probe).stopped, "the other node answers")


def test_fetched_blocks_are_right_after_the_other_node_was_killed(pair):
    there, here = pair
    store(there, KEYS)
    with here.channel() as channel, Session(channel) as session:
        assert session.fetch(KEYS) == 0
        reply = session.fetch_from(there.endpoint, KEYS)
        assert (list(reply.statuses), reply.stopped) == ([OK] * len(KEYS), "")
        there.kill()
        assert session.fetch(KEYS) == len(KEYS)  # compares every byte
        again = session.fetch_from(there.endpoint, KEYS)
        assert list(again.statuses) == [EXISTS] * len(KEYS)
    counters = here.status().counters
    assert counters['fq_fetched_blocks_total{result="ok"}'] == len(KEYS)
    assert counters['fq_fetched_bytes_total{transport="grpc"}'] > len(KEYS) * 65536


def test_other_node_frozen_is_a_miss_within_the_deadline(pair, start_node):
    there, _ = pair
    here = start_node(host_bytes="16MiB", fetch_from=there.endpoint, default_deadline_ms=1000,
                      max_deadline_ms=1000)
    store(there, KEYS)
    with here.channel() as channel, Session(channel) as session:
        wait_until_reachable(session, there.endpoint)
        there.freeze()
        reply = session.fetch_from(there.endpoint, KEYS)
        assert stopped_by(reply) == grpc.StatusCode.DEADLINE_EXCEEDED, reply.stopped
        assert list(reply.statuses) == [MISS] * len(KEYS)
        assert here.status().blocks == 0


def test_other_node_killed_is_a_miss_until_it_is_back(pair):
    there, here = pair
    store(there, KEYS)
    with here.channel() as channel, Session(channel) as session:
        there.kill()
        reply = session.fetch_from(there.endpoint, KEYS)
        assert stopped_by(reply) == grpc.StatusCode.UNAVAILABLE, reply.stopped
        assert here.status().blocks == 0
        there.start()
        store(there, KEYS)
        wait_until_reachable(session, there.endpoint)
        assert list(session.fetch_from(there.endpoint, KEYS).statuses) == [OK] * len(KEYS)
        assert session.fetch(KEYS) == len(KEYS)


def test_killed_at_any_moment_only_whole_right_blocks_are_here(pair):
    """Whatever had come when the other node died can be loaded, and nothing else."""
    there, here = pair
    delivered = []
    for turn in range(6):
        keys = chain(f"killed/{turn}", 96)
        store(there, keys)
        killer = threading.Timer(0.004 * turn, there.kill)
        with here.channel() as channel, Session(channel) as session:
            wait_until_reachable(session, there.endpoint)
            killer.start()
            reply = session.fetch_from(there.endpoint, keys)
            killer.join()
            fetched = list(reply.statuses).count(OK)
            assert list(reply.statuses) == [OK] * fetched + [MISS] * (len(keys) - fetched)
            assert session.fetch(keys) == fetched
            delivered.append(fetched)
        there.start()
    counters = here.status().counters
    assert counters['fq_fetched_blocks_total{result="refused"}'] == 0
    assert counters["fq_store_reserved_blocks"] == 0, delivered


def test_node_that_is_not_listed_is_never_asked(pair):
    there, here = pair
    with here.channel() as channel, Session(channel) as session:
        for node in (here.endpoint, there.endpoint + "x", "127.0.0.1:1"):
            with pytest.raises(grpc.RpcError) as error:
                session.fetch_from(node, KEYS)
            assert error.value.code() == DENIED
    assert there.status().counters['fq_requests_total{code="OK",method="Session"}'] == 0


def test_two_nodes_that_fetch_from_each_other_do_not_wait_for_each_other(start_node):
    ports = free_port(), free_port()
    nodes = [start_node(host_bytes="16MiB", workers=1, max_fetches=2,
                        listen=f"127.0.0.1:{ports[i]}", fetch_from=f"127.0.0.1:{ports[1 - i]}")
             for i in range(2)]
    chains = [chain(f"of {i}", 24) for i in range(2)]
    for node, keys in zip(nodes, chains, strict=True):
        store(node, keys)
    replies = [None, None]

    def fetch(i: int) -> None:
        with nodes[i].channel() as channel, Session(channel) as session:
            replies[i] = session.fetch_from(f"127.0.0.1:{ports[1 - i]}", chains[1 - i])
            assert session.fetch(chains[1 - i]) == 24

    threads = [threading.Thread(target=fetch, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(reply.statuses) for reply in replies] == [[OK] * 24] * 2


@dataclass
class SecurePair:
    """Two nodes behind TLS; `here` fetches from `there` as `name`."""
    authority: Authority
    there_port: int
    here_port: int

    def channel(self, port: int, who: Identity) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.authority.cert, who.key, who.cert)
        return grpc.secure_channel(f"localhost:{port}", credentials)

    @property
    def there(self) -> str:
        return f"localhost:{self.there_port}"


@pytest.fixture
def secure_pair(start_node, tmp_path):
    """secure_pair("node-b") starts two; `there` trusts node-b alone."""
    authority = Authority()
    (tmp_path / "ca").write_bytes(authority.cert)

    def start(name: str) -> SecurePair:
        pair = SecurePair(authority, free_port(), free_port())
        files = authority.issue(name).write(tmp_path, name)
        tls = {"tls_cert": files["cert"], "tls_key": files["key"],
               "tls_client_ca": tmp_path / "ca"}
        start_node(listen=f"localhost:{pair.there_port}", trusted_node="node-b", **tls)
        start_node(listen=f"localhost:{pair.here_port}", fetch_from=pair.there,
                   fetch_tls_ca=tmp_path / "ca", fetch_tls_cert=files["cert"],
                   fetch_tls_key=files["key"], **tls)
        return pair

    return start


def test_trusted_node_fetches_for_each_tenant_its_own_blocks(secure_pair):
    pair = secure_pair("node-b")
    mine, other = pair.authority.issue("team-a"), pair.authority.issue("team-b")
    with pair.channel(pair.there_port, mine) as channel, Session(channel) as session:
        session.store(KEYS)
    with pair.channel(pair.here_port, other) as channel, Session(channel) as session:
        reply = session.fetch_from(pair.there, KEYS)
        assert (list(reply.statuses), reply.stopped) == ([MISS] * len(KEYS), "")
    with pair.channel(pair.here_port, mine) as channel, Session(channel) as session:
        assert list(session.fetch_from(pair.there, KEYS).statuses) == [OK] * len(KEYS)
        assert session.fetch(KEYS) == len(KEYS)
    with pair.channel(pair.here_port, other) as channel, Session(channel) as session:
        assert session.fetch(KEYS) == 0  # nor from here


def test_node_that_is_not_trusted_gets_nothing(secure_pair):
    pair = secure_pair("node-c")
    mine = pair.authority.issue("team-a")
    with pair.channel(pair.there_port, mine) as channel, Session(channel) as session:
        session.store(KEYS)
    with pair.channel(pair.here_port, mine) as channel, Session(channel) as session:
        reply = session.fetch_from(pair.there, KEYS)
        assert stopped_by(reply) == DENIED, reply.stopped
        assert list(reply.statuses) == [MISS] * len(KEYS)


def test_trusted_node_may_read_for_a_tenant_and_not_store(secure_pair):
    pair = secure_pair("node-b")
    request = open_request(tenant="team-a")
    with pair.channel(pair.there_port, pair.authority.issue("team-a")) as channel, \
            Session(channel) as session:
        session.store(KEYS)
    with pair.channel(pair.there_port, pair.authority.issue("node-b")) as channel, \
            Session(channel, request) as session:
        assert session.opened.tenant == "team-a"
        assert session.fetch(KEYS) == len(KEYS)
        with pytest.raises(grpc.RpcError) as error:
            session.store(chain("mine", 1))
        assert error.value.code() == DENIED
        with pytest.raises(grpc.RpcError) as error:  # nor may it make namespaces
            Session(channel, open_request(tenant="team-a", namespace_name="tests/new"))
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
    with pair.channel(pair.there_port, pair.authority.issue("team-b")) as channel, \
            pytest.raises(grpc.RpcError) as error:
        Session(channel, request)
    assert error.value.code() == DENIED


@pytest.mark.parametrize("broken", ["ca", "cert", "key"])
def test_broken_pem_file_of_a_fetch_is_refused_at_start(broken, tmp_path):
    authority = Authority()
    node = authority.issue("node-b")
    for name, text in ({"ca": authority.cert, "cert": node.cert, "key": node.key}
                       | {broken: b"not PEM"}).items():
        (tmp_path / name).write_bytes(text)
    result = run_flashquantd(f"--socket={tmp_path}/fq.sock", "--metrics-listen=",
                             *(f"--fetch-tls-{name}={tmp_path}/{name}"
                               for name in ("ca", "cert", "key")))
    assert result.returncode == 1, result
    assert f"fetch-tls-{broken}" in result.stderr

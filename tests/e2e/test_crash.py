"""A node that dies, freezes or drains, and a client that dies: bounded waits, no wrong page."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from node_process import WAIT_SECONDS, eventually
from raw_client import Session, chain

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
CALL_SECONDS = 20.0  # no call of a test that passes takes as long


class Load:
    """Threads that store and fetch until the node is gone; every page delivered is compared."""

    def __init__(self, node, seed: int) -> None:
        self.errors: list[BaseException] = []
        self.slowest_s = 0.0
        self.fetched = 0
        self.stored = 0
        self._threads = [threading.Thread(target=self._run, args=(node, f"{seed}/{i}", work))
                         for i, work in enumerate((self._store, self._store, self._fetch))]
        for thread in self._threads:
            thread.start()

    def _run(self, node, name: str, work) -> None:
        with node.channel() as channel:
            try:
                with Session(channel) as session:
                    for turn in range(10_000):
                        begin = time.monotonic()
                        try:
                            work(session, name, turn)
                        finally:
                            self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    self.errors.append(error)
            except AssertionError as error:
                self.errors.append(error)

    def _store(self, session: Session, name: str, turn: int) -> None:
        session.store(chain(f"{name}/{turn % 8}", 16), CALL_SECONDS)
        self.stored += 1

    def _fetch(self, session: Session, name: str, turn: int) -> None:
        keys = chain(f"{name[:-1]}{turn % 2}/{turn % 8}", 16)
        self.fetched += session.fetch(keys, CALL_SECONDS)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive(), "a client hangs"


@pytest.mark.parametrize("seed", range(5))
def test_kill_under_load_then_restart_serves_no_wrong_page(node, seed):
    for turn in range(2):
        load = Load(node, seed)
        eventually(lambda: load.stored > 4 and load.fetched > 16 or load.errors, "no traffic")
        time.sleep(random.Random(seed * 2 + turn).uniform(0, 0.2))
        node.kill()
        load.join()
        assert not load.errors, load.errors
        assert load.slowest_s < CALL_SECONDS, "a call has waited for its deadline"
        node.start()
        with node.channel() as channel, Session(channel) as session:
            keys = chain(f"{seed}/0/0", 16)
            assert session.fetch(keys) == 0  # memory only: it starts empty
            session.store(keys)
            assert session.fetch(keys) == 16


def test_call_to_dead_node_fails_at_once(node):
    with node.channel() as channel, Session(channel) as session:
        node.kill()
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as error:
            session.lookup(chain("a", 1), CALL_SECONDS)
        assert error.value.code() in GONE
        assert time.monotonic() - begin < CALL_SECONDS


def test_frozen_node_costs_the_deadline_and_no_more(node):
    keys = chain("a", 4)
    with node.channel() as channel, Session(channel) as session:
        session.store(keys)
        node.freeze()
        begin = time.monotonic()
        with pytest.raises(grpc.RpcError) as error:
            session.lookup(keys, timeout_s=0.2)
        waited_s = time.monotonic() - begin  # the node stands still until it is told to go on
        node.signal(signal.SIGCONT)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert waited_s < CALL_SECONDS
        assert session.fetch(keys) == 4


def test_lease_that_expired_while_frozen_is_not_honoured(start_node):
    node = start_node(host_bytes="64MiB", lease_ms=300)
    keys = chain("a", 4)
    with node.channel() as channel, Session(channel) as session:
        session.store(keys)
        lease = session.lookup(keys).lease_id
        node.freeze()
        time.sleep(1)
        node.signal(signal.SIGCONT)
        eventually(lambda: node.status().leases == 0, "the lease is freed")
        with pytest.raises(grpc.RpcError) as error:
            session.load(lease, 4)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_sigterm_drains_and_exits_with_0(node):
    load = Load(node, 0)
    eventually(lambda: load.stored > 2 or load.errors, "no traffic")
    assert node.stop() == 0
    load.join()
    assert not load.errors, load.errors
    assert not node.socket.exists()
    node.start()
    assert node.status().blocks == 0


CLIENT = """
import sys, time
from node_process import Node
from raw_client import Session, chain
import grpc
channel = grpc.insecure_channel(sys.argv[1])
session = Session(channel)
session.store(chain("a", 8))
leases = [session.lookup(chain("a", 8)).lease_id for _ in range(5)]
print("holding", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_clients_leases_are_free_long_before_they_end(node, number):
    client = subprocess.Popen([sys.executable, "-c", CLIENT, node.endpoint], text=True,
                              stdout=subprocess.PIPE, cwd=os.path.dirname(__file__))
    assert client.stdout.readline() == "holding\n"
    status = node.status()
    assert (status.sessions, status.leases) == (1, 5)
    client.send_signal(number)
    client.wait()
    eventually(lambda: node.status().leases == 0, "leases are freed")
    assert node.status().sessions == 0 and node.status().blocks == 8

"""Fixtures of the end-to-end tests: nodes that are gone when the test is over."""

from collections.abc import Callable, Iterator

import psutil
import pytest
from hostile import KEYS, MEMORY_GROWTH_MAX
from node_process import Node, eventually
from raw_client import Session


@pytest.fixture
def start_node() -> Iterator[Callable[..., Node]]:
    """start_node(host_bytes="4MiB") starts a node with that flag."""
    nodes = []

    def start(**flags: object) -> Node:
        nodes.append(Node(**flags))
        return nodes[-1].start()

    yield start
    for node in nodes:
        node.remove()


@pytest.fixture
def node(start_node) -> Node:
    """A node with small limits."""
    return start_node(host_bytes="64MiB")


@pytest.fixture(scope="module")
def server() -> Iterator[Node]:
    """The node that hostile peers of a whole file meet."""
    node = Node(host_bytes="16MiB", max_segments=4, max_segment_bytes="8MiB").start()
    yield node
    node.remove()


@pytest.fixture
def survives(server) -> Iterator[None]:
    """The node serves as before, with no session, segment or descriptor left over."""
    process = psutil.Process(server.pid)
    with server.channel() as channel, Session(channel) as session:
        session.store(KEYS)
        assert session.fetch(KEYS) == len(KEYS)
    eventually(lambda: server.status().sessions == 0, "sessions end")
    before, memory = process.num_fds(), server.rss_bytes()
    yield
    eventually(lambda: server.status().sessions == 0, "sessions end")
    assert server.process.poll() is None, server.log
    with server.channel() as channel, Session(channel) as session:
        assert session.fetch(KEYS) == len(KEYS)
    eventually(lambda: process.num_fds() <= before + 2, "descriptors are closed")
    assert server.status().counters["fq_segments"] == 0
    assert server.rss_bytes() < memory + MEMORY_GROWTH_MAX

"""Fixtures of the end-to-end tests: nodes that are gone when the test is over."""

from collections.abc import Callable, Iterator

import pytest
from node_process import Node


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

"""What a peer link needs of a communicator: bytes from one window to the other's, in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class PeerError(Exception):
    """A communicator does not work (any more); the text says why."""


@dataclass(frozen=True)
class Span:
    """Bytes [offset, offset + size) of a window."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.size


class Operation(Protocol):
    """A transfer under way. `event`: behind it on the stream of its communicator, if any."""

    event: torch.cuda.Event | None

    def done(self) -> bool:
        """Whether all bytes have come or gone. PeerError: they never will."""


class PeerComm(Protocol):
    """One direction between a worker and its node.

    Operations go in the order in which they were posted, at both ends the same: each is one send
    there and one receive here (or the reverse) of spans of the same sizes in the same order.
    """

    stream: torch.cuda.Stream | None  # on which operations run; None on a CPU

    def send(self, spans: Sequence[Span]) -> Operation:
        """Sends these bytes, once what the stream waits for has come. PeerError."""

    def receive(self, spans: Sequence[Span]) -> Operation:
        """Receives into these bytes. PeerError."""

    def abort(self) -> None:
        """Ends everything at once; afterwards nothing touches the window. Idempotent."""


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same bytes, each span joined to the one before it where it begins at its end.

    Both ends of a link do this to the blocks of a call, in the order of the call.
    """
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].end == span.offset:
            joined[-1] = Span(joined[-1].offset, joined[-1].size + span.size)
        else:
            joined.append(span)
    return joined

"""Peers that send as fast as the node takes it. This file is also the program that floods."""

import json
import random
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from http2 import (ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, HELLO, OPEN_SESSION,
                   PING, PREFACE, RST_STREAM, SETTINGS, SETTINGS_ACK, frame, request)

PART_BYTES = 256 << 10  # made and sent at once
STREAMS_MAX = 1 << 30


def repeat(one: bytes) -> Iterator[bytes]:
    many = one * (PART_BYTES // len(one))
    while True:
        yield many


def streams(make) -> Iterator[bytes]:
    """make(stream) for every new stream."""
    for first in range(1, STREAMS_MAX, 2000):
        yield b"".join(make(first + 2 * i) for i in range(1000))


def endless_header(body: bytes) -> Iterator[bytes]:
    """A header block whose one string is 1 GiB long, and CONTINUATIONs for ever."""
    start = b"\x00" + b"\x01x" + b"\x7f" + bytes([0x80 | 0x01, 0xFF, 0xFF, 0xFF, 0x03])
    yield frame(HEADERS, 0, 1, start)
    yield from repeat(frame(CONTINUATION, 0, 1, body))


def huge_message(piece: int) -> Iterator[bytes]:
    """A Store of 16 MiB that comes in pieces and never ends."""
    yield frame(HEADERS, END_HEADERS, 1, request(b"/flashquant.v1.KvCache/Store"))
    yield frame(DATA, 0, 1, b"\0" + struct.pack(">I", 16 << 20))
    yield from repeat(frame(DATA, 0, 1, b"x" * piece))


def open_and_reset(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, OPEN_SESSION) + frame(RST_STREAM, 0, stream,
                                                                     b"\0\0\0\x08")


# name -> what a peer sends after its preface and settings
FLOODS = {
    "pings": lambda: repeat(frame(PING, 0, 0, b"12345678")),
    "answers to pings": lambda: repeat(frame(PING, ACK, 0, b"12345678")),
    "settings": lambda: repeat(frame(SETTINGS, 0, 0)),
    "settings with values": lambda: repeat(frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0" * 100)),
    "acknowledgements": lambda: repeat(SETTINGS_ACK),
    "priorities": lambda: repeat(frame(2, 0, 1, b"\0\0\0\0\x10")),
    "unknown frames": lambda: repeat(frame(0x77, 0, 0, b"x" * 1000)),
    "window updates": lambda: repeat(frame(8, 0, 0, b"\0\0\0\1") + frame(8, 0, 1, b"\0\0\0\1")),
    "resets of nothing": lambda: streams(lambda s: frame(RST_STREAM, 0, s, b"\0\0\0\x08")),
    "streams opened and reset": lambda: streams(open_and_reset),
    "streams opened": lambda: streams(lambda s: frame(HEADERS, END_HEADERS, s, OPEN_SESSION)),
    "calls of nothing": lambda: streams(
        lambda s: frame(HEADERS, END_HEADERS | END_STREAM, s, request(b"/nothing"))),
    "a header without end": lambda: endless_header(b"x" * 16384),
    "a header in crumbs": lambda: endless_header(b"x"),
    "empty continuations": lambda: endless_header(b""),
    "empty data": lambda: huge_message(0),
    "data in crumbs": lambda: huge_message(1),
    "nothing after the settings": lambda: iter(()),
    "no settings": lambda: iter(()),
    "nothing at all": lambda: iter(()),
    "random bytes": lambda: repeat(random.Random(1).randbytes(PART_BYTES)),
}
BEGINNINGS = {"no settings": PREFACE, "nothing at all": b"", "random bytes": b""}


@dataclass(frozen=True)
class Target:
    """Where to connect: a path, or a port of this host, with TLS where certificates are named."""
    path: str = ""
    port: int = 0
    ca: str = ""
    cert: str = ""
    key: str = ""

    def connect(self, timeout_s: float = 1) -> socket.socket:
        if self.path:
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(timeout_s)
            peer.connect(self.path)
            return peer
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def wrap(self, peer: socket.socket) -> socket.socket:
        """The same with TLS, shaken hands."""
        if not self.ca:
            return peer
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.cert, self.key)
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(peer, server_hostname="localhost")


class Peer:
    """One connection; comes back when it is hung up on."""

    def __init__(self, target: Target, flood: str, reads: bool) -> None:
        self.target, self.flood, self.reads = target, flood, reads
        self.socket: socket.socket | None = None
        self.rest = memoryview(b"")
        self.parts: Iterator[bytes] = iter(())

    def connect(self) -> None:
        try:
            peer = self.target.connect()
            self.socket = peer if self.flood == "nothing at all" else self.target.wrap(peer)
        except OSError:
            return
        self.socket.setblocking(False)
        self.parts = FLOODS[self.flood]()
        self.rest = memoryview(BEGINNINGS.get(self.flood, HELLO))

    def step(self) -> int:
        """Bytes sent; hangs up, to come back later, when the node has."""
        try:
            if self.socket is None:
                self.connect()
            if self.socket is None:
                return 0
            if self.reads:
                self.read()
            if not self.rest:
                self.rest = memoryview(next(self.parts, b""))
            sent = self.socket.send(self.rest) if self.rest else 0
            self.rest = self.rest[sent:]
            return sent
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError:
            self.socket.close()
            self.socket = None
            return 0

    def read(self) -> None:
        try:
            while self.socket.recv(65536):
                pass
            raise ConnectionError("hung up")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass


def run(target: Target, flood: str, peers: int, reads: bool) -> None:
    """Floods until it is killed."""
    crowd = [Peer(target, flood, reads) for _ in range(peers)]
    for peer in crowd:
        peer.step()
    print("flooding", flush=True)
    while True:
        if sum(peer.step() for peer in crowd) == 0:
            time.sleep(0.01)


class Flood:
    """A flood from `peers` connections at once, as long as the `with` block."""

    def __init__(self, target: Target, flood: str, peers: int, reads: bool) -> None:
        self.command = [sys.executable, __file__,
                        json.dumps([asdict(target), flood, peers, reads])]

    def __enter__(self) -> "Flood":
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"flooding\n", "the flood does not begin"
        return self

    def __exit__(self, *_: object) -> None:
        running = self.process.poll() is None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        assert running, "the flood has ended by itself"


if __name__ == "__main__":
    where, *rest = json.loads(sys.argv[1])
    run(Target(**where), *rest)

"""A peer that speaks HTTP/2 by hand and keeps to flow control, so that the node listens to it."""

import socket
import struct

from http2 import (ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
                   SETTINGS_ACK, frame, request)

INITIAL_WINDOW = 65535
WINDOW_UPDATE = 8
FRAME_BYTES = 16384


class WindowedPeer:
    """Makes calls of one method, each with a message of which it sends only a part."""

    def __init__(self, path: str, window: int = INITIAL_WINDOW) -> None:
        """`window`: bytes of each reply that this peer takes."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self.out = bytearray(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)))
        self.came = bytearray()
        self.window, self.initial = INITIAL_WINDOW, INITIAL_WINDOW
        self.left: dict[int, list] = {}  # stream -> [its window, bytes still to send]
        self.ready = self.hung_up = False
        self.sent = 0

    def call(self, method: str, message: bytes, sends: int, ends: bool) -> None:
        """Sends the first `sends` bytes of the message, prefix included, as the windows allow."""
        stream = 2 * len(self.left) + 1
        body = b"\0" + struct.pack(">I", len(message)) + message
        self.out += frame(HEADERS, END_HEADERS, stream,
                          request(f"/flashquant.v1.KvCache/{method}".encode()))
        self.left[stream] = [self.initial, memoryview(body)[:sends], ends]

    def step(self) -> bool:
        """Receives and sends what it can; whether anything moved."""
        try:
            moved = self._receive()
            self._fill()
            while self.out:
                del self.out[:self.socket.send(self.out[:1 << 16])]
                moved = True
        except BlockingIOError:
            return moved
        except OSError:
            self.hung_up = True
            return False
        return moved

    def _receive(self) -> bool:
        try:
            part = self.socket.recv(1 << 16)
        except BlockingIOError:
            return False
        if not part:
            raise ConnectionError("hung up")
        self.came += part
        while len(self.came) >= 9 and len(self.came) >= (
                size := 9 + int.from_bytes(self.came[:3], "big")):
            self._take(self.came[3], self.came[4], int.from_bytes(self.came[5:9], "big"),
                       bytes(self.came[9:size]))
            del self.came[:size]
        return True

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.out += SETTINGS_ACK
            self.ready = True
            for name, value in struct.iter_unpack(">HI", body):
                if name == 4:
                    for left in self.left.values():
                        left[0] += value - self.initial
                    self.initial = value
        elif kind == WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(body, "big")
        elif kind == WINDOW_UPDATE and stream in self.left:
            self.left[stream][0] += int.from_bytes(body, "big")
        elif kind == PING and not flags & ACK:
            self.out += frame(PING, ACK, 0, body)
        elif kind == RST_STREAM and stream in self.left:
            self.left[stream][1] = memoryview(b"")

    def _fill(self) -> None:
        """DATA frames for what the windows allow."""
        for stream, left in self.left.items():
            window, body, ends = left
            size = min(self.window, window, len(body), FRAME_BYTES)
            if size <= 0 or not self.ready or len(self.out) > 1 << 18:
                continue
            last = END_STREAM if ends and size == len(body) else 0
            self.out += frame(DATA, last, stream, bytes(body[:size]))
            left[0], left[1] = window - size, body[size:]
            self.window -= size
            self.sent += size

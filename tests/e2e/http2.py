"""HTTP/2 by hand, for peers that no client library would play."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I",
        stream) + body


def literal(value: bytes) -> bytes:
    """A string of HPACK, shorter than 127 bytes."""
    return bytes([len(value)]) + value


def request(path: bytes) -> bytes:
    """Header block of a gRPC call, without dynamic table."""
    return (b"\x83\x86" + b"\x04" + literal(path) + b"\x01" + literal(b"node") + b"\x0f\x10"
            + literal(b"application/grpc") + b"\x00" + literal(b"te") + literal(b"trailers"))


NO_SETTINGS = frame(SETTINGS, 0, 0)
SETTINGS_ACK = frame(SETTINGS, ACK, 0)
HELLO = PREFACE + NO_SETTINGS
OPEN_SESSION = request(b"/flashquant.v1.KvCache/Session")

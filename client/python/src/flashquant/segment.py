"""A shared memory segment that the node can read and write (proto/segment_socket.md)."""

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Sequence

REQUEST = struct.Struct("<16sIIQ")
REPLY = struct.Struct("<II")
OPERATION_REGISTER = 1
OPERATION_UNREGISTER = 2
MAX_REPLY_BYTES = 4096


class SegmentError(Exception):
    """The node did not take the segment; the text says why."""


def exchange(socket_path: str, request: bytes, descriptors: Sequence[int],
             timeout_s: float) -> tuple[int, int, str]:
    """One packet each way: (gRPC status, segment id, error text).

    OSError: the node cannot be reached, or gave no answer in time (TimeoutError).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(timeout_s)
        peer.connect(socket_path)
        if descriptors:
            socket.send_fds(peer, [request], descriptors)
        else:
            peer.send(request)
        reply = peer.recv(MAX_REPLY_BYTES)
    if len(reply) < REPLY.size:
        raise ConnectionError(f"reply of {len(reply)} bytes")
    status, segment_id = REPLY.unpack_from(reply)
    return status, segment_id, reply[REPLY.size:].decode("utf-8", "replace")


def register(socket_path: str, request: bytes, descriptors: Sequence[int], timeout_s: float,
             what: str) -> int:
    """Id of a new segment. SegmentError says that `what` was refused, and why."""
    try:
        status, segment_id, text = exchange(socket_path, request, descriptors, timeout_s)
    except OSError as error:
        raise SegmentError(f"segment socket {socket_path}: {error}") from error
    if status or not segment_id:
        raise SegmentError(f"the node refused {what}: {text}")
    return segment_id


class Segment:
    """`size` bytes of sealed memfd, mapped here; the memory lives as long as a view of `view`.

    The node never unmaps it before the session ends, so a segment whose call was given up must
    not be used again: a late write or read of the node could meet other contents.
    """

    def __init__(self, size: int) -> None:
        """All pages are touched at once, so that no copy meets a page fault later."""
        self.size = size
        self.id = 0  # given by the node; 0 = not registered
        self._fd = os.memfd_create("flashquant", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self.view = memoryview(mmap.mmap(self._fd, size, flags=flags))
        except BaseException:
            os.close(self._fd)
            raise

    def register(self, socket_path: str, session_id: bytes, timeout_s: float) -> None:
        """Hands the segment to the node; after it `id` is valid in this session. SegmentError."""
        request = REQUEST.pack(session_id, OPERATION_REGISTER, 0, self.size)
        try:
            self.id = register(socket_path, request, [self._fd], timeout_s,
                               f"a segment of {self.size} bytes")
        finally:
            os.close(self._fd)

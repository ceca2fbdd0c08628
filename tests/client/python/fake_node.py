"""A node of the wire in Python that can be slow, rude or absent. For client tests only."""

import concurrent.futures
import contextlib
import threading
import time
from pathlib import Path

import grpc

from flashquant.keys import Namespace
from flashquant.link import SessionSpec
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.v1 import kv_cache_pb2_grpc as pb_grpc

NAMESPACE = Namespace("test-model", layers=2, kv_heads=1, head_size=64, dtype=pb.DTYPE_BF16)
SPEC = SessionSpec("test", NAMESPACE, (0, 2), (0, 1))


class FakeNode(pb_grpc.KvCacheServicer):
    """Knows the keys in `stored`; sleeps `delay_s` before every answer but a session's."""

    def __init__(self, socket: Path) -> None:
        self.endpoint = f"unix://{socket}"
        self.stored: set[bytes] = set()
        self.delay_s = 0.0
        self.fail_with: grpc.StatusCode | None = None
        self.sessions = 0
        self.messages = 0
        self.fingerprint = NAMESPACE.fingerprint()
        self.calibrated_tokens = 0
        self.stalled = threading.Event()  # set: no session is answered
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Serves, from the beginning or after stop()."""
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(pool)
        pb_grpc.add_KvCacheServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.endpoint)
        self._server.start()

    def stop(self) -> None:
        """Ends all calls at once."""
        self._server.stop(grace=None).wait()

    def Session(self, request_iterator, context):
        """Answers each message."""
        while self.stalled.is_set() and context.is_active():
            time.sleep(0.01)
        self.sessions += 1
        number = self.sessions
        for _ in request_iterator:
            self.messages += 1
            yield pb.SessionResponse(session_id=number.to_bytes(16, "little"), tenant="t",
                                     namespace_fingerprint=self.fingerprint, lease_ms=1000,
                                     calibrated_tokens=self.calibrated_tokens)

    def Lookup(self, request, context):
        """All usable, all compact."""
        self._misbehave(context)
        keys = [request.keys[i:i + 32] for i in range(0, len(request.keys), 32)]
        matched = next((i for i, key in enumerate(keys) if key not in self.stored), len(keys))
        return pb.LookupResponse(matched_blocks=matched, usable_blocks=matched,
                                 profiles=[pb.PROFILE_COMPACT] * matched,
                                 stored_bytes=[100] * matched)

    def Store(self, request, context):
        """Stores nothing but the keys."""
        self._misbehave(context)
        keys = [request.keys[i:i + 32] for i in range(0, len(request.keys), 32)]
        self.stored.update(keys)
        return pb.StoreResponse(statuses=[pb.BLOCK_STATUS_OK] * len(keys))

    def _misbehave(self, context) -> None:
        time.sleep(self.delay_s)
        if self.fail_with is not None:
            context.abort(self.fail_with, "as told")


@contextlib.contextmanager
def running(folder: Path):
    """A started FakeNode."""
    node = FakeNode(folder / "s")
    node.start()
    try:
        yield node
    finally:
        node.stop()

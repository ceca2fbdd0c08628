"""GPU memory of an engine as a segment of its session (proto/segment_socket.md, "Device memory").

The node reads and writes the engine's own pages: whoever gives up a call on such a segment must
wait for `settle` before the pages are used for anything else.
"""

import logging
import os
import struct
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from flashquant.device_memory import (
    HANDLE_BYTES,
    DeviceMemoryError,
    Sharing,
    allocation_of,
    descriptor,
    device_uuid,
    ipc_handle,
)
from flashquant.segment import OPERATION_UNREGISTER, REQUEST, exchange, register

log = logging.getLogger("flashquant")

HEAD = struct.Struct("<16sI12x16sIIII64s")
ALLOCATION = struct.Struct("<Q64s")
LAYER = struct.Struct("<IIQ")
OPERATION_REGISTER_DEVICE = 3
FLAG_EVENT = 1
MAX_ALLOCATIONS = 128
LAYER_ALIGNMENT = 16
ANSWER_S = 1.0  # of the node to an unregister
GRACE_S = 1.0   # after it, when the answer does not say that no call runs


@dataclass(frozen=True)
class LayerMemory:
    """The bytes of one layer's pages: from `pointer` on, `size` of them."""

    pointer: int
    size: int


class DeviceMemory:
    """Exported once, on a thread with a CUDA context; registered by every session anew."""

    def __init__(self, layers: Sequence[LayerMemory], event_handle: bytes = b"") -> None:
        """`layers`: in the session's order; `event_handle`: `cudaIpcEventHandle_t` of an event
        behind which the node works. Without one, whoever asks for a Store or Load has waited.

        DeviceMemoryError when the driver cannot share one of the allocations.
        """
        if not layers:
            raise DeviceMemoryError("no layers")
        if event_handle and len(event_handle) != HANDLE_BYTES:
            raise DeviceMemoryError(f"an event handle has {HANDLE_BYTES} bytes, "
                                    f"got {len(event_handle)}")
        self.uuid = device_uuid(layers[0].pointer)
        found = [allocation_of(layer.pointer) for layer in layers]
        self._event_handle = event_handle
        self._allocations = list(dict.fromkeys(found))
        self._layers = [(self._allocations.index(allocation), layer.pointer - allocation.base)
                        for layer, allocation in zip(layers, found)]
        self._check(layers)
        self.sharing = self._allocations[0].sharing
        self.descriptors: tuple[int, ...] = ()
        self._handles = [bytes(HANDLE_BYTES)] * len(self._allocations)
        if self.sharing is Sharing.IPC_HANDLE:
            self._handles = [ipc_handle(allocation) for allocation in self._allocations]
        else:
            self.descriptors = tuple(map(descriptor, self._allocations))
            weakref.finalize(self, close_all, self.descriptors)

    def _check(self, layers: Sequence[LayerMemory]) -> None:
        if len(self._allocations) > MAX_ALLOCATIONS:
            raise DeviceMemoryError(f"{len(self._allocations)} allocations, at most "
                                    f"{MAX_ALLOCATIONS} can be shared")
        if len({allocation.sharing for allocation in self._allocations}) > 1:
            raise DeviceMemoryError("some layers lie in memory of cudaMalloc, some in virtual")
        for number, (layer, (index, offset)) in enumerate(zip(layers, self._layers)):
            size = self._allocations[index].size
            if offset + layer.size > size:
                raise DeviceMemoryError(f"layer {number}: {layer.size} bytes at {offset} of an "
                                        f"allocation of {size}: it spans several")
            if offset % LAYER_ALIGNMENT:
                raise DeviceMemoryError(f"layer {number}: offset {offset} is no multiple of "
                                        f"{LAYER_ALIGNMENT}")

    def packet(self, session_id: bytes) -> bytes:
        """The request that registers it."""
        flags = FLAG_EVENT if self._event_handle else 0
        head = HEAD.pack(session_id, OPERATION_REGISTER_DEVICE, self.uuid, self.sharing,
                         len(self._allocations), len(self._layers), flags, self._event_handle)
        handles = [ALLOCATION.pack(allocation.size, handle)
                   for allocation, handle in zip(self._allocations, self._handles)]
        places = [LAYER.pack(index, 0, offset) for index, offset in self._layers]
        return b"".join([head, *handles, *places])


def close_all(descriptors: Sequence[int]) -> None:
    """Closes descriptors."""
    for fd in descriptors:
        os.close(fd)


class DeviceSegment:
    """Device memory registered in one session. Thread-safe."""

    def __init__(self, memory: DeviceMemory, socket_path: str, session_id: bytes,
                 timeout_s: float) -> None:
        """SegmentError when the node does not take it."""
        self._socket_path, self._session_id = socket_path, session_id
        self._lock = threading.Lock()  # guards the next
        self._settled = False
        self.id = register(socket_path, memory.packet(session_id), memory.descriptors, timeout_s,
                           "the engine's GPU memory")

    def settle(self, give_up: threading.Event) -> bool:
        """Waits until the node no longer touches the memory; for calls that got no reply.

        The node answers an unregister after the calls that run. One that is frozen does not
        answer: then this waits until it moves, or dies, or `give_up` is set (False).
        """
        with self._lock:
            warned = False
            while not self._settled and not give_up.is_set():
                self._settled = self._unregister(give_up)
                if not self._settled and not warned:
                    warned = True
                    log.warning("FlashQuant: the node is frozen with a call on GPU memory under "
                                "way: its blocks are held until it moves or dies")
            return self._settled

    def _unregister(self, give_up: threading.Event) -> bool:
        request = REQUEST.pack(self._session_id, OPERATION_UNREGISTER, self.id, 0)
        try:
            status, _, _ = exchange(self._socket_path, request, (), ANSWER_S)
        except TimeoutError:
            return False
        except OSError:  # nobody listens there any more
            status = 1
        if status:  # the session is over: whoever still runs for it has seen its deadline pass
            give_up.wait(GRACE_S)
        return True

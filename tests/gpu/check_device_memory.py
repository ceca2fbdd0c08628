#!/usr/bin/env python3
"""Whether another process sees a KV cache on this GPU as device_memory.py hands it over.

    [PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True] tests/gpu/check_device_memory.py

A second process opens the allocations and the event as a node does, waits for the event on its own
stream and reads every byte. The writer's kernels are slow, so a reader that did not wait would see
old bytes; a control without the event must see them. With expandable segments the memory is virtual
and handed over by descriptors; torch maps it in pieces of 20 MiB, so layers here have that size: a
larger one lies in several allocations and cannot be shared. Exit code 1 when anything differs.
"""

import argparse
import ctypes
import json
import socket
import subprocess
import sys

import torch

from flashquant.device_memory import DeviceMemoryError, Sharing, call, driver
from flashquant.device_segment import ALLOCATION, HEAD, LAYER, DeviceMemory
from flashquant.vllm.rows_view import RowsView

LAYERS, BLOCKS, HEADS, TOKENS, SIZE = 4, 320, 8, 16, 128  # 20 MiB a layer: one handle of torch's
OLD, NEW = 1, 7
SLOW_CYCLES = 2_000_000_000  # about a second


class Ipc(ctypes.Structure):
    """CUipcMemHandle and CUipcEventHandle, passed by value."""

    _fields_ = [("bytes", ctypes.c_char * 64)]


class Access(ctypes.Structure):
    """CUmemAccessDesc: read and write on device 0."""

    _fields_ = [("kind", ctypes.c_int), ("device", ctypes.c_int), ("flags", ctypes.c_int)]


def raw(handle: bytes) -> Ipc:
    """A handle as a structure."""
    return Ipc.from_buffer_copy(handle)


def open_allocation(size: int, handle: bytes, fd: int | None) -> int:
    """Address of another process's allocation here."""
    address = ctypes.c_uint64()
    if fd is None:
        call("cuIpcOpenMemHandle_v2", ctypes.byref(address), raw(handle), 1)
        return address.value
    memory = ctypes.c_uint64()
    call("cuMemImportFromShareableHandle", ctypes.byref(memory), ctypes.c_void_p(fd), 1)
    call("cuMemAddressReserve", ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_size_t(0),
         ctypes.c_uint64(0), ctypes.c_uint64(0))
    call("cuMemMap", address, ctypes.c_size_t(size), ctypes.c_size_t(0), memory, ctypes.c_uint64(0))
    call("cuMemSetAccess", address, ctypes.c_size_t(size), ctypes.byref(Access(1, 0, 3)),
         ctypes.c_size_t(1))
    return address.value


def read(connection: socket.socket, wait: bool) -> None:
    """The other process: opens everything, waits or not, answers with the values it has seen."""
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    packet, fds, _, _ = socket.recv_fds(connection, 1 << 16, 128)
    _, _, _, sharing, allocations, layers, _, event_handle = HEAD.unpack_from(packet)
    bases = []
    for i in range(allocations):
        size, handle = ALLOCATION.unpack_from(packet, HEAD.size + i * ALLOCATION.size)
        fd = fds[i] if sharing == Sharing.DESCRIPTOR else None
        bases.append(open_allocation(size, handle, fd))
    connection.send(b"open")
    connection.recv(16)
    stream = torch.cuda.Stream()
    if wait:
        event = ctypes.c_void_p()
        call("cuIpcOpenEventHandle", ctypes.byref(event), raw(event_handle))
        call("cuStreamWaitEvent", ctypes.c_void_p(stream.cuda_stream), event, 0)
    seen = []
    size = BLOCKS * HEADS * TOKENS * 2 * SIZE * 2
    begin = HEAD.size + allocations * ALLOCATION.size
    for i in range(layers):
        index, _, offset = LAYER.unpack_from(packet, begin + i * LAYER.size)
        copy = torch.empty(size // 2, dtype=torch.int16, device="cuda")
        call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(copy.data_ptr()),
             ctypes.c_uint64(bases[index] + offset), ctypes.c_size_t(size),
             ctypes.c_void_p(stream.cuda_stream))
        stream.synchronize()
        seen.append(sorted({int(copy.min()), int(copy.max())}))
    connection.send(json.dumps(seen).encode())


def exchange(wait: bool) -> tuple[list[list[int]], DeviceMemory]:
    """What the other process has seen of a cache whose writer is still at it."""
    tensors = [torch.full((BLOCKS, HEADS, TOKENS, 2 * SIZE), OLD, dtype=torch.int16, device="cuda")
               .view(torch.float16) for _ in range(LAYERS)]
    event = torch.cuda.Event(interprocess=True)
    event.record()
    memory = DeviceMemory(RowsView(tensors, BLOCKS, HEADS, SIZE).memory(), event.ipc_handle())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reader = subprocess.Popen([sys.executable, __file__, "--read", str(theirs.fileno()),
                                   *([] if wait else ["--no-wait"])], pass_fds=[theirs.fileno()])
        if memory.descriptors:
            socket.send_fds(ours, [memory.packet(bytes(16))], list(memory.descriptors))
        else:
            ours.send(memory.packet(bytes(16)))
        ours.settimeout(60)
        ours.recv(16)
        torch.cuda.synchronize()
        torch.cuda._sleep(SLOW_CYCLES)
        for tensor in tensors:
            tensor.view(torch.int16).fill_(NEW)
        event.record()
        ours.send(b"go")
        seen = json.loads(ours.recv(4096))
        reader.wait(60)
    torch.cuda.synchronize()
    return seen, memory


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--no-wait", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read is not None:
        read(socket.socket(fileno=arguments.read), not arguments.no_wait)
        return 0
    try:
        driver()
        seen, memory = exchange(wait=True)
        control, _ = exchange(wait=False)
    except DeviceMemoryError as error:
        print(f"device memory: {error}")
        return 1
    print(json.dumps({"sharing": memory.sharing.name, "allocations": len(memory._allocations),
                      "sizes": [a.size for a in memory._allocations], "uuid": memory.uuid.hex(),
                      "with event": seen, "control without": control}))
    good = seen == [[NEW]] * LAYERS and [OLD] in control
    print("device memory:", "as it should be" if good else "WRONG")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

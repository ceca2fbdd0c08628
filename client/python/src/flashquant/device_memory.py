"""GPU memory of this process as another process can open it: ctypes over the CUDA driver.

No dependency: a process that holds GPU memory has loaded libcuda.so.1 already. Call from a thread
whose CUDA context is current (any thread after a torch.cuda call on that device).
"""

import ctypes
import enum
import functools
import os
from dataclasses import dataclass

UUID_BYTES = 16
HANDLE_BYTES = 64
POSIX_FILE_DESCRIPTOR = 1            # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
ATTRIBUTE_DEVICE_ORDINAL = 9         # CU_POINTER_ATTRIBUTE_*
ATTRIBUTE_LEGACY_IPC_CAPABLE = 10

IpcHandle = ctypes.c_char * HANDLE_BYTES
Uuid = ctypes.c_char * UUID_BYTES


class DeviceMemoryError(Exception):
    """Memory cannot be shared; the text says why."""


class Sharing(enum.IntEnum):
    """How allocations are handed over, numbered as on the segment socket."""

    IPC_HANDLE = 1
    DESCRIPTOR = 2


@dataclass(frozen=True)
class Allocation:
    """A whole allocation: what the driver shares is never less."""

    base: int
    size: int
    sharing: Sharing


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver, initialised. DeviceMemoryError without one."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceMemoryError(f"no CUDA driver: {error}") from error
    if code := library.cuInit(0):
        raise DeviceMemoryError(f"cuInit: {error_text(library, code)}")
    return library


def error_text(library: ctypes.CDLL, code: int) -> str:
    """The driver's words for an error."""
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return f"{text.value.decode() if text.value else 'unknown error'} ({code})"


def call(name: str, *arguments: object) -> None:
    """Calls a driver function. DeviceMemoryError names it and what the driver says."""
    library = driver()
    if code := getattr(library, name)(*arguments):
        raise DeviceMemoryError(f"{name}: {error_text(library, code)}")


def attribute(pointer: int, which: int) -> int:
    """An attribute of a device address that fits an int."""
    value = ctypes.c_int()
    call("cuPointerGetAttribute", ctypes.byref(value), which, ctypes.c_uint64(pointer))
    return value.value


def device_uuid(pointer: int) -> bytes:
    """UUID of the GPU (or MIG instance) that holds `pointer`, 16 bytes."""
    device, uuid = ctypes.c_int(), Uuid()
    call("cuDeviceGet", ctypes.byref(device), attribute(pointer, ATTRIBUTE_DEVICE_ORDINAL))
    call("cuDeviceGetUuid_v2", ctypes.byref(uuid), device)
    return uuid.raw


def allocation_of(pointer: int) -> Allocation:
    """The allocation behind a device address; DESCRIPTOR for virtual memory (cuMemCreate)."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size),
         ctypes.c_uint64(pointer))
    legacy = attribute(pointer, ATTRIBUTE_LEGACY_IPC_CAPABLE)
    sharing = Sharing.IPC_HANDLE if legacy else Sharing.DESCRIPTOR
    return Allocation(base.value, size.value, sharing)


def ipc_handle(allocation: Allocation) -> bytes:
    """`cudaIpcMemHandle_t` of a whole allocation of cudaMalloc, 64 bytes."""
    handle = IpcHandle()
    call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(allocation.base))
    return handle.raw


def descriptor(allocation: Allocation) -> int:
    """File descriptor of an allocation of cuMemCreate; the caller closes it.

    DeviceMemoryError when it was not created to be exportable.
    """
    handle, fd = ctypes.c_uint64(), ctypes.c_int(-1)
    call("cuMemRetainAllocationHandle", ctypes.byref(handle), ctypes.c_void_p(allocation.base))
    try:
        call("cuMemExportToShareableHandle", ctypes.byref(fd), handle, POSIX_FILE_DESCRIPTOR,
             ctypes.c_uint64(0))
    finally:
        call("cuMemRelease", handle)
    os.set_inheritable(fd.value, False)
    return fd.value

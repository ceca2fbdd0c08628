"""Block keys: the SHA-256 chain of kv_cache.proto ("Keys"), and the fingerprint of a namespace.

Pure functions and one small class; nothing here is shared between threads. Golden vectors:
tests/golden/keys.json (the C++ client checks the same file).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

BLOCK_TOKENS = 64
KEY_BYTES = 32
ROOT_LABEL = b"flashquant/v1"


def len32(data: bytes) -> bytes:
    """`data` behind its length as little-endian u32."""
    return len(data).to_bytes(4, "little") + data


@dataclass(frozen=True)
class Namespace:
    """What must agree before two engines may share pages (NamespaceDescriptor of the wire)."""

    model: str
    layers: int
    kv_heads: int
    head_size: int
    dtype: int  # number of the wire's DType
    weights_digest: str = ""
    rope: str = ""
    codec_set_id: bytes = b""
    extra: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> bytes:
        """32 bytes; a node computes the same from the descriptor."""
        fields = [self.model.encode(), self.weights_digest.encode()]
        numbers = (self.layers, self.kv_heads, self.head_size, self.dtype)
        fields += [str(number).encode() for number in numbers]
        fields += [self.rope.encode(), self.codec_set_id]
        for key in sorted(self.extra, key=str.encode):
            fields += [key.encode(), self.extra[key].encode()]
        return hashlib.sha256(b"".join(map(len32, fields))).digest()


def root_key(fingerprint: bytes, tenant: str, salt: str) -> bytes:
    """Start of every chain of one (namespace, tenant, salt)."""
    if len(fingerprint) != KEY_BYTES:
        raise ValueError(f"a fingerprint has {KEY_BYTES} bytes, got {len(fingerprint)}")
    parts = (ROOT_LABEL, fingerprint, len32(tenant.encode()), len32(salt.encode()))
    return hashlib.sha256(b"".join(parts)).digest()


class KeyChain:
    """Keys of the full blocks of one token sequence, grown as the sequence grows."""

    def __init__(self, root: bytes) -> None:
        self._last = root
        self._keys = bytearray()

    def __len__(self) -> int:
        """Blocks that have a key."""
        return len(self._keys) // KEY_BYTES

    def extend(self, tokens: Sequence[int] | np.ndarray, extras: Sequence[bytes] = ()) -> None:
        """Appends the keys of `tokens` (a multiple of 64 ids that follow the chain's end).

        `extras`: what else tells each new block apart; empty = nothing for any of them.
        """
        ids = np.asarray(tokens, dtype="<u4").tobytes()
        step = BLOCK_TOKENS * 4
        blocks, rest = divmod(len(ids), step)
        if rest or (extras and len(extras) != blocks):
            raise ValueError(f"{len(ids) // 4} tokens and {len(extras)} extras make no blocks")
        for i in range(blocks):
            extra = len32(extras[i]) if extras else b"\0\0\0\0"
            data = self._last + ids[i * step:(i + 1) * step] + extra
            self._last = hashlib.sha256(data).digest()
            self._keys += self._last

    def keys(self, begin: int, end: int) -> bytes:
        """32 bytes per block of [begin, end)."""
        return bytes(self._keys[begin * KEY_BYTES:end * KEY_BYTES])

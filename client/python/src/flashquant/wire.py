"""Small views of the wire: profiles by name, and the places of blocks in memory."""

import enum

import numpy as np

from flashquant.keys import Namespace
from flashquant.v1 import kv_cache_pb2 as pb


# Wire tags (field number * 8 + type) of Pages.places, BlockPlace.chunk_offsets and .first_token.
PLACES_TAG, CHUNK_OFFSETS_TAG, FIRST_TOKEN_TAG = 2 * 8 + 2, 1 * 8 + 2, 2 * 8 + 0
OFFSET_BYTES, FIRST_TOKEN_BYTES = 6, 2


class Profile(enum.IntEnum):
    """Profile of the wire; smaller keeps more precision."""

    EXACT = pb.PROFILE_EXACT
    NEAR_LOSSLESS = pb.PROFILE_NEAR_LOSSLESS
    COMPACT = pb.PROFILE_COMPACT
    UNIVERSAL = pb.PROFILE_UNIVERSAL

    @property
    def label(self) -> str:
        """As people and options write it."""
        return self.name.lower().replace("_", "-")

    @property
    def needs_codec_set(self) -> bool:
        """Whether a node can store it only with the model's codec set."""
        return self in (Profile.NEAR_LOSSLESS, Profile.COMPACT)

    @property
    def own_floor(self) -> "Profile":
        """The floor that takes no less than this profile gives (a floor is at most COMPACT)."""
        return min(self, Profile.COMPACT)

    @classmethod
    def parse(cls, label: str) -> "Profile":
        """Raises ValueError that names the choices."""
        for profile in cls:
            if profile.label == label:
                return profile
        choices = ", ".join(profile.label for profile in cls)
        raise ValueError(f"profile {label!r} is none of {choices}")


def descriptor_of(namespace: Namespace) -> pb.NamespaceDescriptor:
    """The namespace as the wire carries it."""
    return pb.NamespaceDescriptor(
        model=namespace.model, weights_digest=namespace.weights_digest, layers=namespace.layers,
        kv_heads=namespace.kv_heads, head_size=namespace.head_size, dtype=namespace.dtype,
        rope=namespace.rope, codec_set_id=namespace.codec_set_id, extra=dict(namespace.extra))


def pages_at(layout: pb.PageLayout, offsets: np.ndarray, first_tokens: list[int],
             segment_id: int) -> pb.Pages:
    """Pages of blocks whose chunks begin at `offsets` [blocks][chunks per block] (bytes, < 2^42).

    `first_tokens` [blocks]: position of each block in its first chunk, < 2^14.
    """
    pages = pb.Pages(layout=layout, segment_id=segment_id)
    pages.MergeFromString(encoded_places(offsets, first_tokens))
    return pages


def encoded_places(offsets: np.ndarray, first_tokens: list[int]) -> bytes:
    """`Pages.places` as protobuf has them on the wire.

    All numbers take the same bytes (varints may be longer than they need), so that numpy makes
    all blocks at once: a loop over 256 of them takes as long as decoding 30 on a GPU.
    """
    blocks, chunks = offsets.shape
    packed = OFFSET_BYTES * chunks
    body = np.empty((blocks, 2 + 2 + packed + 1 + FIRST_TOKEN_BYTES), np.uint8)
    body[:, :4] = (PLACES_TAG, body.shape[1] - 2, CHUNK_OFFSETS_TAG, packed)
    body[:, 4:4 + packed] = varints(offsets, OFFSET_BYTES).reshape(blocks, packed)
    body[:, 4 + packed] = FIRST_TOKEN_TAG
    body[:, 5 + packed:] = varints(np.asarray(first_tokens), FIRST_TOKEN_BYTES)
    return body.tobytes()


def varints(values: np.ndarray, size: int) -> np.ndarray:
    """Each value as a varint of `size` bytes, on a last axis of its own."""
    sevens = values.astype(np.uint64)[..., None] >> np.arange(0, 7 * size, 7, dtype=np.uint64)
    out = (sevens & np.uint64(0x7F)).astype(np.uint8)
    out[..., :-1] |= 0x80
    return out

"""Small views of the wire: profiles by name, and the places of blocks in memory."""

import enum

import numpy as np

from flashquant.keys import Namespace
from flashquant.v1 import kv_cache_pb2 as pb


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
    """Pages of blocks whose chunks begin at `offsets` [blocks][chunks per block] (bytes).

    `first_tokens` [blocks]: position of each block in its first chunk.
    """
    pages = pb.Pages(layout=layout, segment_id=segment_id)
    for row, first in zip(offsets.tolist(), first_tokens):
        pages.places.add(chunk_offsets=row, first_token=first)
    return pages

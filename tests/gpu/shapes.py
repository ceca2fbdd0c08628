"""Models by the shape of their KV cache, and a codec set for each, made up but complete.

The set's transforms are Hadamard with random signs and order: rows of independent unit Gaussians
(pages.py) are what it expects, in every head. Its tables are those of the shipped set, in turns,
and its classes have about the shares that they have there: what the tables hold, and how many
groups have bits at all, decides how fast a GPU is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashquant.codec import hadamard
from flashquant.codec_set import (
    GROUP,
    LOSS_NUMBERS,
    CodecSet,
    Profile,
    read_codec_set,
    row_dtype,
    write_codec_set,
)
from flashquant.keys import BLOCK_TOKENS, Namespace
from flashquant.v1 import kv_cache_pb2 as pb

# Groups of 8, 4, 2, 1 and 0 bits of every sixteen; 34 bits each: 2.125 a value
MIXES = ((1, 4, 4, 2, 5), (1, 4, 3, 4, 4), (1, 3, 6, 2, 4), (0, 6, 4, 2, 4), (2, 2, 4, 2, 6))
# Standard deviation behind the base's codes, by their bits.
RESIDUAL = {8: 0.0102, 4: 0.0975, 2: 0.328, 1: 0.584, 0: 1.0}
TABLES = Path(__file__).parents[2] / "codec_sets/smollm2-135m-instruct.fqcs"
ELEMENT_BYTES = 2


@dataclass(frozen=True)
class Shape:
    """KV cache of one model, FP16."""

    name: str
    layers: int
    heads: int
    head_size: int

    @property
    def block_bytes(self) -> int:
        """FP16 bytes of a block of 64 tokens, all layers."""
        return self.layers * self.heads * BLOCK_TOKENS * 2 * self.head_size * ELEMENT_BYTES

    def namespace(self, codec_set_id: bytes) -> Namespace:
        """All of the model in one worker."""
        return Namespace(f"made-up-{self.name}", self.layers, self.heads, self.head_size,
                         pb.DTYPE_F16, codec_set_id=codec_set_id, extra={"packing": "rows"})


SHAPES = {shape.name: shape for shape in (
    Shape("70b", 80, 8, 128), Shape("8b", 32, 8, 128), Shape("tiny", 3, 2, 128),
    Shape("1m", 32, 1, 128))}  # the last: blocks of 1 MiB


def made_up_codec_set(shape: Shape, seed: int = 7) -> CodecSet:
    """See the head of the file. The same arguments give the same set."""
    random = np.random.default_rng(seed)
    size, groups = shape.head_size, shape.head_size // GROUP
    profiles = [mix_profile(mix, other, groups) for mix, other in zip(MIXES, MIXES[1:] + MIXES[:1])]
    profile_of = random.integers(len(profiles), size=(shape.layers, shape.heads))
    shipped = read_codec_set(TABLES)
    rows = np.zeros((shape.layers, shape.heads, 2), row_dtype(size))
    rows["weight"] = 1.0
    for name in ("class4", "class2", "class1"):
        tables = used_tables(shipped, name)
        places = np.arange(2 * rows.size) % len(tables)
        rows["base"][name] = tables[places[::2]].reshape(rows["base"][name].shape)
        rows["refinement"][name] = tables[places[1::2]].reshape(rows["refinement"][name].shape)
    plain = hadamard(size).numpy()
    for index in np.ndindex(rows.shape):
        rotation = (plain * random.choice((-1, 1), size).astype(np.float32))[
            random.permutation(size)]
        rows["A"][index], rows["Ai"][index] = rotation, rotation.T
        profile = profiles[profile_of[index[:2]]]
        classes = profile.v if index[2] else profile.k
        rows["sd"][index] = np.repeat([RESIDUAL[bits] for bits in classes], GROUP)
    nothing = {**{name: 0.0 for name in LOSS_NUMBERS}, "tokens": 0, "text": "none: made up"}
    return CodecSet(f"made-up-{shape.name}", shape.layers, shape.heads, size, 4096, profiles,
                    profile_of.tolist(), rows, {"compact": nothing, "near-lossless": nothing},
                    "tests/gpu/shapes.py", seed)


def used_tables(codec_set: CodecSet, name: str) -> np.ndarray:
    """The tables of a class that the heads of a set use, one behind the other."""
    base = codec_set.rows["base"][name]
    tables = base.reshape(-1, *base.shape[3:])
    used = (tables != tables[:, :1]).reshape(len(tables), -1).any(axis=1)
    return tables[used]


def mix_profile(k: tuple[int, ...], v: tuple[int, ...], groups: int) -> Profile:
    """A profile whose groups of K and V are mixed so; 2 bits of refinement in all."""
    def classes(mix: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(np.repeat((8, 4, 2, 1, 0), np.array(mix) * groups // 16).tolist())

    return Profile(classes(k), classes(v), (2,) * groups, (2,) * groups)


def write_made_up(shape: Shape, folder: Path) -> tuple[Path, CodecSet]:
    """The set as a file in `folder`."""
    codec_set = made_up_codec_set(shape)
    path = folder / f"{shape.name}.fqcs"
    write_codec_set(codec_set, path)
    return path, codec_set

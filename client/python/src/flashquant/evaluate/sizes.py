"""Bytes that a node holds for a chain of blocks, everything counted (FORMAT.md section 4)."""

from flashquant.codec import ALIGNMENT, PAGE_TOKENS, SINK_TOKENS
from flashquant.codec_set import CodecSet

PAGE_CHECKSUM_BYTES = 8
SLAB_HEADER_BYTES = 128
TAIL_BLOCKS = 2
RAW_BYTES = 2


def _head_bytes(codec_set: CodecSet) -> int:
    """Header, checksums and padding of one extent."""
    head = SLAB_HEADER_BYTES + PAGE_CHECKSUM_BYTES * codec_set.layers * codec_set.kv_heads
    return head + -head % ALIGNMENT


def _values(codec_set: CodecSet, tokens: int) -> int:
    return codec_set.layers * codec_set.kv_heads * 2 * codec_set.head_size * tokens


def base_bytes(codec_set: CodecSet, sink: bool = False) -> int:
    """The base extent of one block of the whole model; a `sink` block has sink records."""
    codes = round(codec_set.bits_per_value(False) * _values(codec_set, PAGE_TOKENS) / 8)
    record = 2 * SINK_TOKENS * codec_set.head_size + 8 * SINK_TOKENS
    records = codec_set.layers * codec_set.kv_heads * record if sink else 0
    return _head_bytes(codec_set) + codes + records


def refinement_bytes(codec_set: CodecSet) -> int:
    """The refinement extent of one block of the whole model."""
    bits = codec_set.bits_per_value(True) - codec_set.bits_per_value(False)
    return _head_bytes(codec_set) + round(bits * _values(codec_set, PAGE_TOKENS) / 8)


def slab_bytes(codec_set: CodecSet, refined: bool) -> int:
    """All extents of one interior block of the whole model."""
    return base_bytes(codec_set) + (refinement_bytes(codec_set) if refined else 0)


def interior_ratio(codec_set: CodecSet, refined: bool) -> float:
    """16-bit values to the bytes of an interior block."""
    return RAW_BYTES * _values(codec_set, PAGE_TOKENS) / slab_bytes(codec_set, refined)


def chain_ratio(codec_set: CodecSet, tokens: int, refined: bool) -> float:
    """16-bit values to the bytes of a stored chain of `tokens` (whole blocks, two or more): sinks
    in block 0, the last two blocks near-lossless (tail rule). ValueError if it is no such chain."""
    blocks = tokens // PAGE_TOKENS
    if tokens % PAGE_TOKENS or blocks < TAIL_BLOCKS:
        raise ValueError(f"tokens of a chain: found {tokens}, expected a multiple of {PAGE_TOKENS},"
                         f" >= {TAIL_BLOCKS * PAGE_TOKENS}")
    sinks = base_bytes(codec_set, sink=True) - base_bytes(codec_set)
    refinements = blocks if refined else TAIL_BLOCKS
    stored = blocks * base_bytes(codec_set) + sinks + refinements * refinement_bytes(codec_set)
    return RAW_BYTES * _values(codec_set, tokens) / stored

"""The reference codec: layouts against the text of FORMAT.md, pages, checksum, exactness."""

import json
import random
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from flashquant.codec import (LEVELS, SINK_TOKENS, Page, PageKind, PartCodec, checksum,
                              decode_exact, decode_extent, decode_fq, decode_fq_values,
                              decode_universal, encode_extent,
                              encode_exact, encode_fq, encode_universal, from_lanes,
                              fused_multiply_add, hadamard, nearest, page_bytes, row_codecs,
                              to_lanes, universal_page_codes)
from flashquant.codec_set import (CLASSES, CodecSet, Profile, read_codec_set, row_dtype,
                                  table_values)

HEAD_SIZES = (64, 96, 128, 256)
GOLDEN = Path(__file__).parents[2] / "golden"
ELEMENT_BYTES = {"f16": 2, "bf16": 2, "f32": 4}


@pytest.fixture
def seed():
    value = random.randrange(1 << 30)
    print("seed", value)
    torch.manual_seed(value)
    return value


def random_tables(seed):
    """Tables whose entries are finite and mostly within -2..2."""
    tables = np.zeros((), row_dtype(64)["base"])
    words = np.random.default_rng(seed)
    for name in ("class4", "class2", "class1"):
        tables[name] = words.integers(0, 1 << 32, tables[name].shape, np.uint32) & 0xBFBFBFBF
    return tables


def position(is_key, lane, j, r, e):
    """(token, component) of section 2, written from the text."""
    g, t = divmod(lane, 4)
    return (16 * j + g + 8 * r, 2 * t + e) if is_key else (16 * j + 8 * r + 2 * t + e, g)


def decode_by_text(page, classes, tables, is_key):
    """A page of one part, decoded value by value as the tables of section 2 say."""
    out = np.zeros((64, 8 * len(classes)), np.float32)
    begin = 0
    for group, bits in enumerate(classes):
        for lane, j, r, e in np.ndindex(32, 4, 2, 2):
            token, component = position(is_key, lane, j, r, e)
            value = np.float32(0)
            if bits == 8:
                code = int(page[begin + 16 * lane + 4 * j + 2 * r + e])
                value = np.float32(code - 128) * (np.float32(4.5) / np.float32(127))
            elif bits == 4:
                word = int(tables["class4"][page[begin + 8 * lane + 2 * j + r]])
                value = half(word >> 16 if e else word & 0xFFFF)
            elif bits == 2:
                value = chain(int(tables["class2"][page[begin + 4 * lane + j]]), r, e)
            elif bits == 1:
                entry = tables["class1"][page[begin + 2 * lane + (j >> 1)]]
                value = chain(int(entry[j & 1]), r, e)
            out[token, 8 * group + component] = value
        begin += 64 * bits
    return out


def half(bits):
    return np.float32(np.array([bits], np.uint16).view(np.float16)[0])


def chain(word, r, e):
    b0, b1, b2, b3 = word.to_bytes(4, "little")
    return half({(0, 0): b1 << 8 | b0, (0, 1): b3 << 8 | b2,
                 (1, 0): b0 << 8, (1, 1): b2 << 8 | b1}[r, e])


@pytest.mark.parametrize("is_key", [True, False])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_decode_random_bytes_as_format_says(seed, head_size, is_key):
    classes = tuple(random.Random(seed).choices(CLASSES, k=head_size // 8))
    tables = random_tables(seed)
    part = PartCodec(classes, tables, is_key)
    assert part.page_bytes == 64 * sum(classes)
    page = torch.randint(1, 256, (1, part.page_bytes), dtype=torch.uint8)
    expected = decode_by_text(page[0].numpy(), classes, tables, is_key)
    assert np.array_equal(part.decode(page).numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("is_key", [True, False])
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("bits", CLASSES)
def test_encode_values_are_nearest_entries(seed, head_size, is_key, bits):
    tables = random_tables(seed)
    part = PartCodec((bits,) * (head_size // 8), tables, is_key)
    values = torch.randn(128, head_size)
    found = part.decode(part.encode(values))
    if bits == 0:
        assert not found.any()
    elif bits == 8:
        step = 4.5 / 127
        assert (found - values.clamp(-4.5, 4.5)).abs().max() <= step / 2 * 1.0001
    else:
        book = torch.from_numpy(table_values(tables, bits))
        vectors = to_lanes(values, is_key).reshape(-1, 8 // bits)
        expected = book[torch.cdist(vectors.double(), book.double()).argmin(1)]
        error = (to_lanes(found, is_key).reshape(vectors.shape) - vectors).pow(2).sum(1)
        assert torch.allclose(error, (expected - vectors).pow(2).sum(1), atol=1e-4)


@pytest.mark.parametrize("is_key", [True, False])
def test_encode_decoded_page_same_values(seed, is_key):
    """What came out of a page goes through another page unchanged: packing loses nothing.

    Two entries of a random table can be so near that rounding takes one for the other; a value out
    of place differs by about 1.
    """
    part = PartCodec((8, 4, 2, 1, 0, 1, 2, 4), random_tables(seed), is_key)
    once = part.decode(part.encode(torch.randn(192, 64)))
    torch.testing.assert_close(part.decode(part.encode(once)), once, rtol=0, atol=5e-3)


def test_from_lanes_inverse(seed):
    for is_key in (True, False):
        x = torch.randn(128, 96)
        assert torch.equal(from_lanes(to_lanes(x, is_key), is_key), x)


def test_nearest_tie_lowest_index():
    book = torch.tensor([[1.0], [-1.0], [1.0]])
    assert nearest(torch.tensor([[0.0], [2.0], [-2.0]]), book).tolist() == [0, 0, 1]


def test_fused_multiply_add_one_rounding(seed):
    a, b, c = (torch.randn(4000) * 10.0 ** torch.randint(-6, 6, (4000,)) for _ in range(3))
    a[:4], b[:4], c[:4] = 1 + 2.0 ** -12, 1 + 2.0 ** -12, torch.tensor([1.0, -1, 2 ** -30, 2 ** 24])
    found = fused_multiply_add(a, b, c)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist()):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        distance = abs(Fraction(f) - exact)
        for neighbour in np.nextafter(np.float32(f), np.float32([-np.inf, np.inf])):
            assert distance <= abs(Fraction(float(neighbour)) - exact)


def test_fused_multiply_add_double_rounding_case():
    # a b = 2^-24 (1 - 2^-46): the exact sum is just below the middle between c and its neighbour,
    # FP64 rounds it to the middle, and from there it would go to the even neighbour above.
    a, b = (2 ** 23 + 1) * 2.0 ** -35, (2 ** 24 - 2) * 2.0 ** -36
    c = 1 + 2.0 ** -23
    assert np.float32(a * b + c) == 1 + 2.0 ** -22
    assert fused_multiply_add(*(torch.tensor([x]) for x in (a, b, c))).item() == c


def codec_set_of(head_size, seed):
    """One layer, one head; transforms near the identity, all classes used."""
    rows = np.zeros((1, 1, 2), row_dtype(head_size))
    generator = np.random.default_rng(seed)
    for kv in (0, 1):
        row = rows[0, 0, kv]
        a = np.eye(head_size) + 0.1 * generator.standard_normal((head_size, head_size)) / 8
        row["A"], row["Ai"] = a, np.linalg.inv(a)
        row["mu"] = generator.standard_normal(head_size)
        row["sd"], row["weight"] = 0.3, 1.0
        row["base"], row["refinement"] = random_tables(seed), random_tables(seed + 1)
    classes = (8, 4, 2, 1, 0, 1, 2, 4) * 4
    n = head_size // 8
    profile = Profile(classes[:n], classes[1:n + 1], classes[2:n + 2], classes[3:n + 3])
    return CodecSet("m", 1, 1, head_size, 1, [profile], [[0]], rows, {}, "", 0)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("head_size", [64, 96])
def test_fq_page_partial_and_sink(seed, head_size, sink, tokens):
    codecs = row_codecs(codec_set_of(head_size, seed), 0, 0)
    k, v = torch.randn(2, tokens, head_size).bfloat16()
    page = encode_fq(codecs, k, v, sink)
    assert len(page.primary) == page_bytes(PageKind.BASE, head_size, codecs=codecs, sink=sink)
    assert len(page.refinement) == page_bytes(PageKind.REFINEMENT, head_size, codecs=codecs,
                                              sink=sink)
    found = decode_fq(codecs, page, tokens, sink, torch.bfloat16)
    for x, y in zip((k, v), found):
        assert y.shape == x.shape and y.dtype == torch.bfloat16 and y.isfinite().all()
        if sink:
            first = x[:SINK_TOKENS].float()
            error = (y[:SINK_TOKENS].float() - first).abs()
            assert (error <= first.abs().amax(-1, keepdim=True) * (0.5 / 127 + 2 ** -8)).all()


def test_fq_page_refinement_reduces_error(seed):
    codecs = row_codecs(codec_set_of(64, seed), 0, 0)
    u = torch.zeros(64, 64)
    base, refinement = codecs[0].encode(u + 0.5, torch.zeros(64, dtype=torch.bool))
    alone = codecs[0].values(base, None)
    both = codecs[0].values(base, refinement)
    expected = fused_multiply_add(codecs[0].sd, codecs[0].refinement.decode(refinement), alone)
    assert torch.equal(both, expected) and not torch.equal(both, alone)


def test_fq_values_without_refinement_is_base(seed):
    codecs = row_codecs(codec_set_of(64, seed), 0, 0)
    page = encode_fq(codecs, torch.randn(64, 64), torch.randn(64, 64), sink=False)
    split = codecs[0].base.page_bytes
    k, v = decode_fq_values(codecs, Page(page.primary))
    assert torch.equal(k, codecs[0].base.decode(page.primary[None, :split]))
    assert torch.equal(v, codecs[1].base.decode(page.primary[None, split:]))


def test_fq_page_wrong_length_refused(seed):
    codecs = row_codecs(codec_set_of(64, seed), 0, 0)
    page = encode_fq(codecs, torch.randn(9, 64), torch.randn(9, 64), sink=False)
    with pytest.raises(ValueError, match="bytes of a base page: found"):
        decode_fq(codecs, page, 9, True, torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("sink", [False, True])
def test_all_kinds_bad_input_finite_output(seed, bad, sink):
    codecs = row_codecs(codec_set_of(64, seed), 0, 0)
    k, v = torch.randn(2, 64, 64)
    k[3], v[40, 7] = bad, bad
    for found in (decode_fq(codecs, encode_fq(codecs, k, v, sink), 64, sink, torch.float32),
                  decode_universal(encode_universal(k, v, sink), 64, 64, sink, torch.float32)):
        assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_exact_page_every_bit(seed, dtype):
    k, v = torch.randn(2, 40, 96).to(dtype)
    k[0, 0], v[1, 1] = float("nan"), float("-inf")
    page = encode_exact(k, v)
    assert len(page.primary) == page_bytes(PageKind.EXACT, 96, k.element_size())
    for x, y in zip((k, v), decode_exact(page, 40, 96, dtype)):
        assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_universal_page_error_of_4_bits(seed, head_size):
    k, v = torch.randn(2, 64, head_size) * 5
    page = encode_universal(k, v, sink=False)
    assert len(page.primary) == page_bytes(PageKind.UNIVERSAL, head_size) == 64 * head_size + 256
    for x, y in zip((k, v), decode_universal(page, 64, head_size, False, torch.float32)):
        assert (x - y).pow(2).mean() / x.pow(2).mean() < 0.0125
    # Lane 0 of V holds component 0 of tokens 0 and 1 in byte 0, the first in the low nibble.
    turned = (v[0] / v[0].pow(2).mean().sqrt()) @ hadamard(head_size)
    low = int(page.primary[32 * head_size]) & 15
    assert (low >= 8) == bool(turned[0] > 0)


def test_universal_zero_rows_zero():
    page = encode_universal(torch.zeros(1, 64), torch.zeros(1, 64), sink=False)
    k, _ = decode_universal(page, 1, 64, False, torch.float32)
    assert k.abs().max() < 2 ** -20


@pytest.mark.parametrize("size,block", [(64, 64), (96, 32), (128, 128), (256, 256)])
def test_hadamard_orthonormal_blocks(size, block):
    h = hadamard(size)
    assert torch.allclose(h @ h, torch.eye(size), atol=1e-6)
    assert (h != 0).sum() == size * block


def checksum_by_text(data):
    """Section 3, one word at a time."""
    mask, total = (1 << 64) - 1, 0
    for i, (x,) in enumerate(struct.iter_unpack("<Q", data)):
        v = x ^ (0x9E3779B97F4A7C15 * (i + 1) & mask)
        total += (v & 0xFFFFFFFF) * (v >> 32) + ((x << 32 | x >> 32) & mask)
    h = (total & mask) ^ (len(data) * 0xC2B2AE3D27D4EB4F & mask)
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & mask
    return h ^ h >> 32


def test_checksum_by_hand():
    # One zero word: v = 0x9E3779B97F4A7C15, s = 0x7F4A7C15 * 0x9E3779B9
    s = 0x7F4A7C15 * 0x9E3779B9
    h = s ^ (8 * 0xC2B2AE3D27D4EB4F % 2 ** 64)
    h ^= h >> 37
    h = h * 0x165667919E3779F9 % 2 ** 64
    assert checksum(bytes(8)) == h ^ (h >> 32)


def test_checksum_random_as_format_says(seed):
    data = random.Random(seed).randbytes(4352)
    assert checksum(data) == checksum_by_text(data)
    for offset in (0, 777, 4351):
        changed = bytearray(data)
        changed[offset] ^= 1
        assert checksum(bytes(changed)) != checksum(data)
    with pytest.raises(ValueError, match="multiple of 8"):
        checksum(data[:-1])


def golden_pages():
    """Entries of the manifest that state coded-domain values."""
    pages = json.loads((GOLDEN / "manifest.json").read_text("utf-8"))
    return [page for page in pages if page["values"]]


def golden_bytes(name):
    return torch.frombuffer(bytearray((GOLDEN / name).read_bytes()), dtype=torch.uint8)


@pytest.mark.parametrize("entry", golden_pages(), ids=lambda e: e["name"])
def test_golden_page_values_bit_for_bit(entry):
    kind, d = PageKind[entry["kind"].upper()], entry["head_size"]
    data = golden_bytes(entry["file"])
    codecs = None
    if kind == PageKind.UNIVERSAL:
        k, v = (LEVELS[codes] for codes, _ in universal_page_codes(Page(data), d))
    else:
        codec_set = read_codec_set(GOLDEN / entry["codec_set"])
        codecs = row_codecs(codec_set, entry["layer"], entry["head"])
        page = Page(data)
        if kind == PageKind.REFINEMENT:
            page = Page(golden_bytes(entry["base_file"]), data)
        k, v = decode_fq_values(codecs, page)
    assert len(data) == page_bytes(kind, d, ELEMENT_BYTES[entry["dtype"]], codecs, entry["sink"])
    expected = golden_bytes(entry["values"]).view(torch.int32)
    assert torch.equal(torch.stack([k, v]).view(torch.int32).flatten(), expected)


def test_golden_checksums():
    # FORMAT.md section 9.
    for name, expected in (("base_d64_f16.bin", 0x6146F86B01ACD0A0),
                           ("refinement_d64_f16.bin", 0xFCA7B309764CAE08)):
        assert checksum((GOLDEN / name).read_bytes()) == expected


def golden_slab():
    """The extent, the sizes of its two pages, and their codecs."""
    codec_set = read_codec_set(GOLDEN / "codec_set_d64.fqcs")
    codecs = [row_codecs(codec_set, 0, head) for head in (0, 1)]
    sizes = [page_bytes(PageKind.BASE, 64, codecs=pair, sink=True) for pair in codecs]
    return (GOLDEN / "slab_d64.bin").read_bytes(), sizes, codec_set


def test_golden_slab_same_header_and_bytes():
    data, sizes, codec_set = golden_slab()
    header, pages = decode_extent(data, sizes)
    assert (header.kind, header.sink, header.tokens, header.pages) == (PageKind.BASE, 1, 33, 2)
    assert header.key == bytes(range(32)) and header.codec_set_id == codec_set.id
    assert (header.head_begin, header.head_end, header.head_size) == (0, 2, 64)
    assert encode_extent(header, pages) == data


@pytest.mark.parametrize("offset", [0, 4, 7, 30, 60, 119, 120, 128, 143, 150, 192, -1])
def test_golden_slab_any_changed_byte_refused(offset):
    data, sizes, _ = golden_slab()
    changed = bytearray(data)
    changed[offset] ^= 1
    with pytest.raises(ValueError):
        decode_extent(bytes(changed), sizes)


@pytest.mark.parametrize("length", [0, 127, 200, -1])
def test_golden_slab_cut_refused(length):
    data, sizes, _ = golden_slab()
    with pytest.raises(ValueError, match="found"):
        decode_extent(data[:length], sizes)

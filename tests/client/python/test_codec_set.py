"""Codec-set files: round trip, and refusal of everything that does not fit."""

import hashlib
import json

import numpy as np
import pytest

from flashquant.codec_set import (HEADER, LOSS_NAMES, LOSS_NUMBERS, CodecSet, CodecSetError,
                                  Profile, chain_values, half_pairs, parse_codec_set,
                                  read_codec_set, row_dtype, write_codec_set)

CLASSES = (8, 4, 2, 2, 1, 1, 0, 0)


def random_codec_set(head_size=64, layers=2, kv_heads=3, seed=1):
    """A codec set of random, finite numbers; two profiles."""
    random = np.random.default_rng(seed)
    rows = np.zeros((layers, kv_heads, 2), row_dtype(head_size))
    for name in ("mu", "A", "Ai", "weight", "sd"):
        rows[name] = random.standard_normal(rows[name].shape, np.float32)
    for part in ("base", "refinement"):
        for name in ("class4", "class2", "class1"):
            words = random.integers(0, 1 << 32, rows[part][name].shape, np.uint32)
            rows[part][name] = words & np.uint32(0x3B3B3B3B)  # exponents of 14 at most: finite
    classes = CLASSES * (head_size // 64) + CLASSES[:head_size % 64 // 8]
    profiles = [Profile(classes, classes[::-1], classes, classes), Profile(*[classes] * 4)]
    loss = {name: dict.fromkeys(LOSS_NUMBERS, 1.0) | {"text": "none"} for name in LOSS_NAMES}
    return CodecSet("tiny", layers, kv_heads, head_size, 2048, profiles,
                    [[(i + j) % 2 for j in range(kv_heads)] for i in range(layers)],
                    rows, loss, "test", seed)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.fqcs"
    write_codec_set(random_codec_set(), path)
    return path


@pytest.mark.parametrize("head_size", [64, 96, 128, 256])
def test_round_trip_any_head_size_equal(tmp_path, head_size):
    written = random_codec_set(head_size, layers=1, kv_heads=2)
    write_codec_set(written, tmp_path / "a.fqcs")
    read = read_codec_set(tmp_path / "a.fqcs")
    assert read.rows.tobytes() == written.rows.tobytes()
    assert read.id == written.id and read.profiles == written.profiles
    assert read.profile_of == written.profile_of and read.loss == written.loss
    assert read.bits_per_value(True) == written.bits_per_value(True) > read.bits_per_value(False)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "b.fqcs").write_bytes(b"FQCS")
    with pytest.raises(CodecSetError, match=f"^{tmp_path}/b.fqcs: "):
        read_codec_set(tmp_path / "b.fqcs")


def random_losses(profile="compact", **changes):
    return [{"profile": profile} | dict.fromkeys(LOSS_NUMBERS, 1.0) | {"text": "none"} | changes]


def test_round_trip_optional_keys_equal(tmp_path):
    written = random_codec_set()
    write_codec_set(written, tmp_path / "without.fqcs")
    assert b"expected_error" not in (tmp_path / "without.fqcs").read_bytes()
    without = read_codec_set(tmp_path / "without.fqcs")
    assert without.expected_error is None and without.loss_by_length == []
    written.expected_error = {name: [[[0.1, 0.25]] * 3] * 2 for name in LOSS_NAMES}
    written.loss_by_length = random_losses(tokens=4096, perplexity_excess_percent=-0.1)
    write_codec_set(written, tmp_path / "a.fqcs")
    read = read_codec_set(tmp_path / "a.fqcs")
    assert read.expected_error == written.expected_error
    assert read.loss_by_length == written.loss_by_length


def test_write_twice_same_bytes(tmp_path):
    for name in ("a.fqcs", "b.fqcs"):
        write_codec_set(random_codec_set(), tmp_path / name)
    assert (tmp_path / "a.fqcs").read_bytes() == (tmp_path / "b.fqcs").read_bytes()


def test_layout_as_format_says(file):
    data = file.read_bytes()
    magic, version, size, json_bytes, digest, zero = HEADER.unpack_from(data)
    assert (magic, version, size, zero) == (b"FQCS", 1, len(data), 0)
    assert digest == hashlib.sha256(data[64:]).digest()
    arrays = 64 + -(-json_bytes // 64) * 64
    words = 3 * 64 + 2 * 64 * 64 + 2 * 4 * 256
    assert len(data) == arrays + 2 * 3 * 2 * 4 * words
    first = np.frombuffer(data, "<f4", 64, arrays)
    assert np.array_equal(first, random_codec_set().rows["mu"][0, 0, 0])


def sealed(data: bytes) -> bytes:
    """`data` with length and SHA-256 made to fit."""
    magic, version, _, json_bytes, _, zero = HEADER.unpack_from(data)
    digest = hashlib.sha256(data[64:]).digest()
    return HEADER.pack(magic, version, len(data), json_bytes, digest, zero) + data[64:]


def with_json(data: bytes, change) -> bytes:
    """`data` whose JSON went through `change`."""
    json_bytes = HEADER.unpack_from(data)[3]
    arrays = data[64 + -(-json_bytes // 64) * 64:]
    text = json.loads(data[64:64 + json_bytes])
    change(text)
    encoded = json.dumps(text).encode()
    header = HEADER.pack(b"FQCS", 1, 0, len(encoded), b"", 0)
    return sealed(header + encoded + b"\0" * (-len(encoded) % 64) + arrays)


def with_byte(data: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    changed[offset] = value
    return bytes(changed)


def not_finite(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[-4:] = b"\xff\xff\xff\xff"
    return sealed(bytes(changed))


DAMAGE = {
    "empty": (lambda d: b"", "bytes of the file: found 0"),
    "magic": (lambda d: with_byte(d, 0, 88), r"magic: found b'XQCS', expected b'FQCS'"),
    "version": (lambda d: with_byte(d, 4, 2), "version: found 2, expected 1"),
    "cut": (lambda d: d[:-1], "bytes of the file"),
    "longer": (lambda d: d + b"\0", "bytes of the file"),
    "longer, sealed": (lambda d: sealed(d + b"\0" * 4), "bytes of the file"),
    "reserved": (lambda d: with_byte(d, 56, 1), "reserved field: found 1"),
    "flipped bit": (lambda d: with_byte(d, len(d) - 1, d[-1] ^ 1), "SHA-256"),
    "json length": (lambda d: with_byte(d, 23, 255), "bytes of the JSON text"),
    "json damaged": (lambda d: sealed(with_byte(d, 64, 0)), "JSON text"),
    "not finite": (not_finite, "refinement class 1 of layer 1, head 2, V"),
}

JSON_DAMAGE = {
    "no model": (lambda t: t.pop("model"), "model: found None, expected str"),
    "layers not a number": (lambda t: t.update(layers="2"), "layers: found '2', expected int"),
    "layers bool": (lambda t: t.update(layers=True), "layers: found True, expected int"),
    "no layers": (lambda t: t.update(layers=0), "layers: found 0, expected >= 1"),
    "more layers": (lambda t: t.update(layers=3), r"profile_of \(layers\): found 2, expected 3"),
    "head size": (lambda t: t.update(head_size=80), "head_size: found 80"),
    "other head size": (lambda t: t.update(head_size=128), r"profiles\[0\].k: found"),
    "class 3": (lambda t: t["profiles"][0]["v"].__setitem__(0, 3), r"profiles\[0\].v: found class"),
    "no profiles": (lambda t: t.update(profiles=[]), r"profiles: found 0, expected 1\.\.32"),
    "33 profiles": (lambda t: t.update(profiles=t["profiles"] * 17), "profiles: found 34"),
    "index": (lambda t: t["profile_of"][1].__setitem__(0, 2), r"profile_of\[1\]: found index 2"),
    "negative": (lambda t: t["profile_of"][1].__setitem__(0, -1), r"profile_of\[1\]: found index"),
    "heads": (lambda t: t["profile_of"][0].pop(), r"profile_of\[0\]: found"),
    "loss": (lambda t: t["loss"].pop("compact"), "loss.compact: found None"),
    "loss number": (lambda t: t["loss"]["compact"].update(tokens="x"), "loss.compact.tokens"),
    "loss text": (lambda t: t["loss"]["compact"].pop("text"), "loss.compact.text"),
    "errors null": (lambda t: t.update(expected_error=None), "expected_error: found None"),
    "errors of one": (lambda t: t.update(expected_error={"compact": [[[0, 0]] * 3] * 2}),
                      "expected_error.near-lossless: found None, expected 2 entries"),
    "errors of a head": (
        lambda t: t.update(expected_error=dict.fromkeys(LOSS_NAMES, [[[0, 0]] * 2] * 2)),
        r"expected_error.compact\[0\]: found 2, expected 3 entries"),
    "errors of V": (
        lambda t: t.update(expected_error=dict.fromkeys(LOSS_NAMES, [[[0]] * 3] * 2)),
        r"expected_error.compact\[0\]\[0\]: found 1, expected 2 entries"),
    "error negative": (
        lambda t: t.update(expected_error=dict.fromkeys(LOSS_NAMES, [[[0, -0.5]] * 3] * 2)),
        r"expected_error.compact\[0\]\[0\]\[1\]: found -0.5, expected >= 0"),
    "error text": (
        lambda t: t.update(expected_error=dict.fromkeys(LOSS_NAMES, [[[0, "a"]] * 3] * 2)),
        r"expected_error.compact\[0\]\[0\]\[1\]: found 'a', expected a number"),
    "losses object": (lambda t: t.update(loss_by_length={}), "loss_by_length: found {}"),
    "losses many": (lambda t: t.update(loss_by_length=random_losses() * 257),
                    "loss_by_length: found 257, expected at most 256"),
    "losses profile": (lambda t: t.update(loss_by_length=random_losses("exact")),
                       r"loss_by_length\[0\].profile: found 'exact'"),
    "losses negative": (lambda t: t.update(loss_by_length=random_losses(kl_divergence=-0.1)),
                        r"loss_by_length\[0\].kl_divergence: found -0.1, expected >= 0"),
    "losses nan": (lambda t: t.update(loss_by_length=random_losses(tokens=float("nan"))),
                   r"loss_by_length\[0\].tokens: found nan, expected a number"),
    "losses number": (lambda t: t.update(loss_by_length=[3]), r"loss_by_length\[0\]: found 3"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_parse_damaged_refused(file, name):
    change, message = DAMAGE[name]
    with pytest.raises(CodecSetError, match=message):
        parse_codec_set(change(file.read_bytes()))


@pytest.mark.parametrize("name", JSON_DAMAGE)
def test_parse_wrong_json_refused(file, name):
    change, message = JSON_DAMAGE[name]
    with pytest.raises(CodecSetError, match=message):
        parse_codec_set(with_json(file.read_bytes(), change))


def test_parse_unknown_key_ignored(file):
    assert parse_codec_set(with_json(file.read_bytes(), lambda t: t.update(rope_anchor_log2=0)))


def test_write_not_finite_refused(tmp_path):
    codec_set = random_codec_set()
    codec_set.rows["sd"][1, 0, 1, 5] = np.inf
    with pytest.raises(CodecSetError, match="sd of layer 1, head 0, V"):
        write_codec_set(codec_set, tmp_path / "a.fqcs")
    assert not list(tmp_path.iterdir())


def test_chain_values_bytes_of_format():
    # b3 b2 b1 b0 = 3C 40 44 48: halves 4448, 3C40, 4800, 4044.
    expected = np.array([0x4448, 0x3C40, 0x4800, 0x4044], np.uint16).view(np.float16)
    found = chain_values(np.array([0x3C404448], np.uint32))[0]
    assert np.array_equal(found, expected.astype(np.float32))


def test_half_pairs_low_half_first():
    assert half_pairs(np.array([0xC0003C00], np.uint32)).tolist() == [[1.0, -2.0]]

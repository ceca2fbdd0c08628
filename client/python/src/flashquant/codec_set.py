"""Codec-set files (`.fqcs`): kernels/FORMAT.md section 7, and the tables in them (section 2).

Needs only numpy. Everything that is read is checked; a file that does not fit is refused with
CodecSetError, whose text names the field and the two values that disagree.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"FQCS"
VERSION = 1
HEADER = struct.Struct("<4sIQQ32sQ")
ALIGNMENT = 64
CLASSES = (8, 4, 2, 1, 0)
HEAD_SIZES = (64, 96, 128, 256)
GROUP = 8
MOST_PROFILES = 32
PROFILE_PARTS = ("k", "v", "k_refinement", "v_refinement")
LOSS_NAMES = ("compact", "near-lossless")
LOSS_NUMBERS = ("perplexity_excess_percent", "standard_error_percent", "kl_divergence",
                "top1_agreement_percent", "bits_per_value", "tokens")
MOST_LOSSES = 256


class CodecSetError(ValueError):
    """The bytes are not a codec set that this version can read."""


@dataclass(frozen=True)
class Profile:
    """Classes (bits per value) of the d / 8 channel groups, for K, V and their refinements."""

    k: tuple[int, ...]
    v: tuple[int, ...]
    k_refinement: tuple[int, ...]
    v_refinement: tuple[int, ...]

    def base_bits(self) -> int:
        """Bits of the base codes of one token, K and V."""
        return GROUP * (sum(self.k) + sum(self.v))

    def refinement_bits(self) -> int:
        """Bits of the refinement codes of one token, K and V."""
        return GROUP * (sum(self.k_refinement) + sum(self.v_refinement))


@dataclass
class CodecSet:
    """A codec set in memory. `rows` is [layers, kv_heads, 2 (K, V)] of `row_dtype(head_size)`.

    `expected_error` (None: not known) and `loss_by_length` as in section 7.
    """

    model: str
    layers: int
    kv_heads: int
    head_size: int
    calibrated_tokens: int
    profiles: list[Profile]
    profile_of: list[list[int]]
    rows: np.ndarray
    loss: dict[str, dict[str, Any]]
    created_by: str
    seed: int
    expected_error: dict[str, list] | None = None
    loss_by_length: list[dict[str, Any]] = field(default_factory=list)
    id: bytes = field(default=b"", compare=False)

    def profile(self, layer: int, head: int) -> Profile:
        """The profile of one (layer, kv head)."""
        return self.profiles[self.profile_of[layer][head]]

    def bits_per_value(self, refined: bool) -> float:
        """Mean code bits per K or V value over the model."""
        bits = sum(profile.base_bits() + refined * profile.refinement_bits()
                   for line in self.profile_of for profile in (self.profiles[i] for i in line))
        return bits / (self.layers * self.kv_heads * 2 * self.head_size)


def row_dtype(head_size: int) -> np.dtype:
    """Layout of the arrays of one (layer, head, K|V). `A` row = component, `Ai` row = channel."""
    d = head_size
    tables = [("class4", "<u4", 256), ("class2", "<u4", 256), ("class1", "<u4", (256, 2))]
    return np.dtype([("mu", "<f4", d), ("A", "<f4", (d, d)), ("Ai", "<f4", (d, d)),
                     ("weight", "<f4", d), ("sd", "<f4", d),
                     ("base", tables), ("refinement", tables)])


def half_pairs(words: np.ndarray) -> np.ndarray:
    """Class-4 entries u32[...] -> their two values, FP32 [..., 2] (low half first)."""
    halves = np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16)
    return halves.view(np.float16).astype(np.float32)


def chain_values(words: np.ndarray) -> np.ndarray:
    """Chain words u32[...] -> values (0,0), (0,1), (1,0), (1,1) of section 2, FP32 [..., 4]."""
    halves = [words & 0xFFFF, words >> 16, (words & 0xFF) << 8, (words >> 8) & 0xFFFF]
    return np.stack(halves, -1).astype(np.uint16).view(np.float16).astype(np.float32)


def table_values(tables: np.ndarray, bits: int) -> np.ndarray:
    """Values of all 256 entries of a table, FP32 [256, 8 / bits]; `tables`: a row's `base`, ..."""
    if bits == 4:
        return half_pairs(tables["class4"])
    if bits == 2:
        return chain_values(tables["class2"])
    return chain_values(tables["class1"]).reshape(256, 8)


def write_codec_set(codec_set: CodecSet, file: Path) -> None:
    """Checks `codec_set` and writes it, over an older file in one step; sets `codec_set.id`."""
    text = {key: value for key, value in asdict(codec_set).items()
            if key not in ("rows", "id") and (key not in _OPTIONAL or value)}
    _check_json(text)
    _check_rows(codec_set.rows)
    encoded = json.dumps(text, indent=1).encode("utf-8")
    padding = b"\0" * (-len(encoded) % ALIGNMENT)
    body = encoded + padding + np.ascontiguousarray(codec_set.rows).tobytes()
    codec_set.id = hashlib.sha256(body).digest()
    size = HEADER.size + len(body)
    header = HEADER.pack(MAGIC, VERSION, size, len(encoded), codec_set.id, 0)
    partial = Path(file).with_suffix(".partial")
    partial.write_bytes(header + body)
    partial.replace(file)


def read_codec_set(file: Path) -> CodecSet:
    """Reads and checks a file; CodecSetError if it is not a codec set or is damaged."""
    try:
        return parse_codec_set(Path(file).read_bytes())
    except CodecSetError as error:
        raise CodecSetError(f"{file}: {error}") from None


def parse_codec_set(data: bytes) -> CodecSet:
    """The codec set in `data`; CodecSetError as in `read_codec_set`."""
    json_bytes, digest = _check_header(data)
    text = _parse_json(data[HEADER.size:HEADER.size + json_bytes])
    _check_json(text)
    start = HEADER.size + json_bytes + (-json_bytes % ALIGNMENT)
    dtype = row_dtype(text["head_size"])
    shape = (text["layers"], text["kv_heads"], 2)
    wanted = start + dtype.itemsize * shape[0] * shape[1] * shape[2]
    _expect("bytes of the file for these layers, kv_heads and head_size", len(data), wanted)
    rows = np.frombuffer(data, dtype, offset=start).reshape(shape).copy()
    _check_rows(rows)
    known = {key: text[key] for key in (*_FIELDS, *_OPTIONAL) if key in text}
    known["profiles"] = [Profile(**{part: tuple(profile[part]) for part in PROFILE_PARTS})
                         for profile in text["profiles"]]
    return CodecSet(**known, rows=rows, id=digest)


_FIELDS = {"model": str, "layers": int, "kv_heads": int, "head_size": int,
           "calibrated_tokens": int, "profiles": list, "profile_of": list, "loss": dict,
           "created_by": str, "seed": int}
_OPTIONAL = {"expected_error": dict, "loss_by_length": list}


def _expect(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise CodecSetError(f"{what}: found {found!r}, expected {wanted!r}")


def _check_header(data: bytes) -> tuple[int, bytes]:
    """Bytes of the JSON text, and the id."""
    if len(data) < HEADER.size:
        raise CodecSetError(f"bytes of the file: found {len(data)}, expected >= {HEADER.size}")
    magic, version, size, json_bytes, digest, reserved = HEADER.unpack_from(data)
    _expect("magic", magic, MAGIC)
    _expect("version", version, VERSION)
    _expect("bytes of the file", len(data), size)
    _expect("reserved field", reserved, 0)
    if json_bytes > size - HEADER.size:
        raise CodecSetError(f"bytes of the JSON text: found {json_bytes}, "
                            f"expected <= {size - HEADER.size}")
    _expect("SHA-256", hashlib.sha256(data[HEADER.size:]).hexdigest(), digest.hex())
    return json_bytes, digest


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        text = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise CodecSetError(f"JSON text: {error}") from error
    _expect("JSON text", type(text).__name__, "dict")
    return text


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _check_json(text: dict[str, Any]) -> None:
    for name, kind in _FIELDS.items():
        if not _is(text.get(name), kind):
            raise CodecSetError(f"{name}: found {text.get(name)!r}, expected {kind.__name__}")
    for name, kind in _OPTIONAL.items():
        if name in text and not _is(text[name], kind):
            raise CodecSetError(f"{name}: found {text[name]!r}, expected {kind.__name__}")
    for name in ("layers", "kv_heads", "calibrated_tokens"):
        if text[name] < 1:
            raise CodecSetError(f"{name}: found {text[name]}, expected >= 1")
    if text["head_size"] not in HEAD_SIZES:
        raise CodecSetError(f"head_size: found {text['head_size']}, expected one of {HEAD_SIZES}")
    _check_profiles(text)
    for name in LOSS_NAMES:
        _check_loss(f"loss.{name}", text["loss"].get(name))
    if "expected_error" in text:
        _check_expected_error(text)
    _check_losses(text.get("loss_by_length", []))


def _check_profiles(text: dict[str, Any]) -> None:
    profiles, groups = text["profiles"], text["head_size"] // GROUP
    if not 1 <= len(profiles) <= MOST_PROFILES:
        raise CodecSetError(f"profiles: found {len(profiles)}, expected 1..{MOST_PROFILES}")
    for number, profile in enumerate(profiles):
        for part in PROFILE_PARTS:
            classes = profile.get(part) if isinstance(profile, dict) else None
            where = f"profiles[{number}].{part}"
            if not isinstance(classes, (list, tuple)) or len(classes) != groups:
                raise CodecSetError(f"{where}: found {classes!r}, expected {groups} classes")
            bad = [c for c in classes if not _is(c, int) or c not in CLASSES]
            if bad:
                raise CodecSetError(f"{where}: found class {bad[0]!r}, expected one of {CLASSES}")
    _expect("profile_of (layers)", len(text["profile_of"]), text["layers"])
    for layer, line in enumerate(text["profile_of"]):
        if not isinstance(line, list) or len(line) != text["kv_heads"]:
            raise CodecSetError(f"profile_of[{layer}]: found {line!r}, "
                                f"expected {text['kv_heads']} indices")
        bad = [i for i in line if not _is(i, int) or not 0 <= i < len(profiles)]
        if bad:
            raise CodecSetError(f"profile_of[{layer}]: found index {bad[0]!r}, "
                                f"expected 0..{len(profiles) - 1}")


def _number(where: str, value: Any, least: float = -np.inf) -> None:
    """CodecSetError unless `value` is a finite number >= `least`."""
    if not (_is(value, int) or _is(value, float)) or not np.isfinite(value):
        raise CodecSetError(f"{where}: found {value!r}, expected a number")
    if value < least:
        raise CodecSetError(f"{where}: found {value!r}, expected >= {least:g}")


def _check_loss(where: str, loss: Any, least: float = -np.inf) -> None:
    """`least`: of all numbers but the perplexity excess."""
    if not isinstance(loss, dict):
        raise CodecSetError(f"{where}: found {loss!r}, expected an object")
    for key in LOSS_NUMBERS:
        signed = key == "perplexity_excess_percent"
        _number(f"{where}.{key}", loss.get(key), -np.inf if signed else least)
    if not isinstance(loss.get("text"), str):
        raise CodecSetError(f"{where}.text: found {loss.get('text')!r}, expected a string")


def _check_losses(losses: list) -> None:
    if len(losses) > MOST_LOSSES:
        raise CodecSetError(f"loss_by_length: found {len(losses)}, expected at most {MOST_LOSSES}")
    for number, loss in enumerate(losses):
        where = f"loss_by_length[{number}]"
        _check_loss(where, loss, 0.0)
        if loss.get("profile") not in LOSS_NAMES:
            raise CodecSetError(f"{where}.profile: found {loss.get('profile')!r}, "
                                f"expected one of {LOSS_NAMES}")


def _check_expected_error(text: dict[str, Any]) -> None:
    """Numbers >= 0, [layers][kv_heads][2] for each name of a loss."""
    for name in LOSS_NAMES:
        where, shape = f"expected_error.{name}", (text["layers"], text["kv_heads"], 2)
        level = [(where, text["expected_error"].get(name))]
        for size in shape:
            for place, values in level:
                if not isinstance(values, list) or len(values) != size:
                    found = len(values) if isinstance(values, list) else repr(values)
                    raise CodecSetError(f"{place}: found {found}, expected {size} entries")
            level = [(f"{place}[{i}]", value) for place, values in level
                     for i, value in enumerate(values)]
        for place, value in level:
            _number(place, value, 0.0)


def _check_rows(rows: np.ndarray) -> None:
    arrays = {name: rows[name] for name in ("mu", "A", "Ai", "weight", "sd")}
    for part in ("base", "refinement"):
        arrays[f"{part} class 4"] = half_pairs(rows[part]["class4"])
        arrays[f"{part} class 2"] = chain_values(rows[part]["class2"])
        arrays[f"{part} class 1"] = chain_values(rows[part]["class1"])
    for name, values in arrays.items():
        finite = np.isfinite(values)
        if not finite.all():
            layer, head, kv = np.argwhere(~finite)[0][:3]
            raise CodecSetError(f"{name} of layer {layer}, head {head}, {'KV'[kv]}: found a value "
                                "that is not finite, expected finite values")

"""Reference of the page codec: kernels/FORMAT.md sections 1 to 6, in torch.

Decoding gives the coded-domain values bit for bit. Calibration and evaluation use the same
functions, so what they measure went through real page bytes. Codecs live on one device and take
tensors of that device.

Shapes: P pages of 64 tokens, T = 64 P tokens, d head size, n groups of 8 components.
"""

import enum
import struct
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flashquant.codec_set import GROUP, CodecSet, table_values

Device = str | torch.device

PAGE_TOKENS = 64
SINK_TOKENS = 16
LARGEST = 65504.0
SEARCH_CHUNK = 4096
SLAB_MAGIC = 0x31535146
SLAB_VERSION = 1
SLAB_HEADER = struct.Struct("<IHBB6HB3xIIQQ32s32sQ")
ALIGNMENT = 64
STEP_8 = float(np.float32(4.5) / np.float32(127))
SMALLEST_NORM = 2.0 ** -24
HALF_LEVELS = (-2.7326, -2.0690, -1.6181, -1.2562, -0.9424, -0.6568, -0.3881, -0.1284)
LEVELS = torch.tensor(HALF_LEVELS + tuple(-x for x in reversed(HALF_LEVELS)))


class PageKind(enum.IntEnum):
    """Kind of a page as the slab header holds it."""

    EXACT = 0
    BASE = 1
    REFINEMENT = 2
    UNIVERSAL = 3


def to_lanes(values: Tensor, is_key: bool) -> Tensor:
    """[T, 8 n] -> [P, n, 32 lanes, 16]; the 16 are (tile j, r, e) of the table in section 2."""
    n = values.shape[1] // GROUP
    if is_key:
        return values.view(-1, 4, 2, 8, n, 4, 2).permute(0, 4, 3, 5, 1, 2, 6).reshape(-1, n, 32, 16)
    return values.view(-1, 4, 2, 4, 2, n, 8).permute(0, 5, 6, 3, 1, 2, 4).reshape(-1, n, 32, 16)


def from_lanes(lanes: Tensor, is_key: bool) -> Tensor:
    """Inverse of `to_lanes`: [P, n, 32, 16] -> [T, 8 n]."""
    n = lanes.shape[1]
    parts = lanes.reshape(-1, n, 8, 4, 4, 2, 2)
    order = (0, 4, 5, 2, 1, 3, 6) if is_key else (0, 4, 5, 3, 6, 1, 2)
    return parts.permute(order).reshape(-1, GROUP * n)


def nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """Index (int64 [N]) of the entry of `book` [K, D] nearest to each of `vectors` [N, D].

    Ties, after rounding, go to the lowest index.
    """
    half_norm = 0.5 * book.pow(2).sum(-1)
    weight = book.T.contiguous()
    chunk = SEARCH_CHUNK if vectors.device.type == "cpu" else 64 * SEARCH_CHUNK
    return torch.cat([_largest(torch.addmm(half_norm, part, weight, beta=-1))
                      for part in vectors.split(chunk)])


def _largest(scores: Tensor) -> Tensor:
    """Index of the largest of each row, the lowest of equal ones: where numpy can, it takes a
    quarter of torch's time."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def _encode_8(values: Tensor) -> Tensor:
    """[...] -> bytes 1..255."""
    return ((values * (127 / 4.5)).round().clamp(-127, 127) + 128).to(torch.uint8)


class PartCodec:
    """Codes of one part (base or refinement) of K or of V: classes per group, table per class."""

    def __init__(self, classes: tuple[int, ...], tables: np.ndarray, is_key: bool,
                 device: Device = "cpu") -> None:
        """`tables`: `base` or `refinement` of a row of `CodecSet.rows`."""
        self.page_bytes = PAGE_TOKENS * sum(classes)
        self._width, self._is_key = GROUP * len(classes), is_key
        begins = np.cumsum([0, *classes[:-1]]) * PAGE_TOKENS
        self._groups: dict[int, Tensor] = {}
        self._places: dict[int, Tensor] = {}
        self._books: dict[int, Tensor] = {}
        for bits in sorted(set(classes) - {0}):
            groups = [i for i, c in enumerate(classes) if c == bits]
            self._groups[bits] = torch.tensor(groups, device=device)
            self._places[bits] = torch.cat(
                [begins[i] + torch.arange(PAGE_TOKENS * bits) for i in groups]).to(device)
            if bits < 8:
                book = torch.from_numpy(table_values(tables, bits).copy())
                self._books[bits] = book.to(device)

    def encode(self, values: Tensor) -> Tensor:
        """Coded-domain input [T, d] FP32 -> bytes [P, page_bytes]."""
        lanes = to_lanes(values, self._is_key)
        pages = torch.empty(len(lanes), self.page_bytes, dtype=torch.uint8, device=values.device)
        for bits, groups in self._groups.items():
            part = lanes[:, groups]
            if bits < 8:
                book = self._books[bits]
                codes = nearest(part.reshape(-1, book.shape[1]), book).to(torch.uint8)
            else:
                codes = _encode_8(part)
            pages[:, self._places[bits]] = codes.reshape(len(lanes), -1)
        return pages

    def decode(self, pages: Tensor) -> Tensor:
        """Bytes [P, page_bytes] -> values [T, d] FP32, bit for bit as section 2 says."""
        lanes = torch.zeros(len(pages), self._width // GROUP, 32, 16, device=pages.device)
        for bits, groups in self._groups.items():
            codes = pages[:, self._places[bits]]
            if bits < 8:
                found = self._books[bits][codes.long()]
            else:
                found = (codes.float() - 128) * STEP_8
            lanes[:, groups] = found.reshape(len(pages), len(groups), 32, 16)
        return from_lanes(lanes, self._is_key)


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """fmaf(a, b, c) of FP32 tensors with one rounding.

    The product is exact in FP64. The sum is rounded to odd (Boldo and Melquiond 2008) from the
    error that two-sum finds, so that the last rounding to FP32 is that of the exact value.
    """
    product, addend = torch.broadcast_tensors(a.double() * b.double(), c.double())
    total = product + addend
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    even = (total.contiguous().view(torch.int64) & 1) == 0
    toward = torch.copysign(torch.full_like(total, torch.inf), error)
    odd = torch.where((error != 0) & even, torch.nextafter(total, toward), total)
    return odd.float()


class RowCodec:
    """One (layer, kv head, K|V): transform, base and refinement."""

    def __init__(self, row: np.ndarray, is_key: bool, classes: tuple[int, ...],
                 refinement_classes: tuple[int, ...], device: Device = "cpu") -> None:
        """`row`: one record of `CodecSet.rows`."""
        self.mu, self.A, self.Ai, self.sd = (
            torch.from_numpy(row[name].copy()).to(device) for name in ("mu", "A", "Ai", "sd"))
        self.base = PartCodec(classes, row["base"], is_key, device)
        self.refinement = PartCodec(refinement_classes, row["refinement"], is_key, device)

    def components(self, x: Tensor) -> Tensor:
        """Rows [T, d] -> u = A (x - mu), FP32; NaN and large values as section 1 says."""
        x = torch.where(x.isnan(), self.mu, x.float()).clamp(-LARGEST, LARGEST)
        return (x - self.mu) @ self.A.T

    def encode(self, u: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
        """u [T, d] -> pages of base and of refinement; rows where `blank` [T] are coded as 0."""
        u = torch.where(blank[:, None], 0.0, u)
        base = self.base.encode(u)
        return base, self.refinement.encode((u - self.base.decode(base)) * (1 / self.sd))

    def values(self, base: Tensor, refinement: Tensor | None) -> Tensor:
        """Pages -> coded-domain values [T, d] FP32, bit for bit."""
        found = self.base.decode(base)
        if refinement is None:
            return found
        return fused_multiply_add(self.sd, self.refinement.decode(refinement), found)

    def rows(self, values: Tensor) -> Tensor:
        """Coded-domain values [T, d] -> rows, FP32."""
        return values @ self.Ai.T + self.mu


def row_codecs(codec_set: CodecSet, layer: int, head: int,
               device: Device = "cpu") -> tuple[RowCodec, RowCodec]:
    """The codecs of K and V of one (layer, kv head)."""
    profile = codec_set.profile(layer, head)
    k, v = codec_set.rows[layer, head]
    return (RowCodec(k, True, profile.k, profile.k_refinement, device),
            RowCodec(v, False, profile.v, profile.v_refinement, device))


def page_bytes(kind: PageKind, head_size: int, element_bytes: int = 2,
               codecs: tuple[RowCodec, RowCodec] | None = None, sink: bool = False) -> int:
    """Bytes of a page; `codecs` are needed for base and refinement."""
    if kind == PageKind.EXACT:
        return 2 * PAGE_TOKENS * head_size * element_bytes
    record = 32 * head_size + 128 if sink and kind != PageKind.REFINEMENT else 0
    if kind == PageKind.UNIVERSAL:
        return PAGE_TOKENS * head_size + 4 * PAGE_TOKENS + record
    return sum((c.base if kind == PageKind.BASE else c.refinement).page_bytes
               for c in codecs) + record


@dataclass(frozen=True)
class Page:
    """Encoded K and V of one block of one (layer, kv head): uint8 [bytes] each."""

    primary: Tensor
    refinement: Tensor | None = None


def _padded(x: Tensor) -> Tensor:
    """Rows [n <= 64, d] -> [64, d], zero beyond n."""
    if not 1 <= len(x) <= PAGE_TOKENS:
        raise ValueError(f"tokens of a page: found {len(x)}, expected 1..{PAGE_TOKENS}")
    return torch.cat([x, x.new_zeros(PAGE_TOKENS - len(x), x.shape[1])])


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).flatten()


def encode_fq(codecs: tuple[RowCodec, RowCodec], k: Tensor, v: Tensor, sink: bool) -> Page:
    """Base and refinement pages of K, V [n, d]; block 0 of a sequence is a `sink` block."""
    token = torch.arange(PAGE_TOKENS, device=k.device)
    blank = (token >= len(k)) | ((token < SINK_TOKENS) if sink else False)
    parts = [codec.encode(codec.components(_padded(x)), blank)
             for codec, x in zip(codecs, (k, v))]
    base, refinement = (torch.cat([part[i].flatten() for part in parts]) for i in (0, 1))
    return Page(torch.cat([base, _encode_sinks(k, v)]) if sink else base, refinement)


def decode_fq_values(codecs: tuple[RowCodec, RowCodec],
                     page: Page) -> tuple[Tensor, Tensor]:
    """Coded-domain values of K and V, FP32 [64, d], bit for bit; sink rows are not replaced."""
    found, begins = [], [0, 0]
    for codec in codecs:
        parts = []
        for which, (data, part) in enumerate(((page.primary, codec.base),
                                              (page.refinement, codec.refinement))):
            end = begins[which] + part.page_bytes
            parts.append(None if data is None else data[None, begins[which]:end])
            begins[which] = end
        found.append(codec.values(*parts))
    return found[0], found[1]


def decode_fq(codecs: tuple[RowCodec, RowCodec], page: Page, tokens: int, sink: bool,
              dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K, V [tokens, d] of a base page, with its refinement if `page` has one."""
    wanted = page_bytes(PageKind.BASE, codecs[0].mu.shape[0], codecs=codecs, sink=sink)
    if len(page.primary) != wanted:
        raise ValueError(f"bytes of a base page: found {len(page.primary)}, expected {wanted}")
    k, v = (codec.rows(x) for codec, x in zip(codecs, decode_fq_values(codecs, page)))
    if sink:
        _put_sinks(page.primary, k, v)
    return k[:tokens].to(dtype), v[:tokens].to(dtype)


def encode_exact(k: Tensor, v: Tensor) -> Page:
    """The exact page of K, V [n, d], elements as they are."""
    return Page(torch.cat([_bytes(_padded(k)), _bytes(_padded(v))]))


def decode_exact(page: Page, tokens: int, head_size: int,
                 dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K, V [tokens, d] of an exact page."""
    k, v = page.primary.view(dtype).view(2, PAGE_TOKENS, head_size)
    return k[:tokens], v[:tokens]


def _without_nan(x: Tensor) -> Tensor:
    return torch.nan_to_num(x.float(), nan=0.0, posinf=LARGEST,
                            neginf=-LARGEST).clamp(-LARGEST, LARGEST)


def _encode_sinks(k: Tensor, v: Tensor) -> Tensor:
    """Sink record: bytes [32 d + 128] (section 5)."""
    rows = torch.stack([_without_nan(_padded(x)[:SINK_TOKENS]) for x in (k, v)])
    scale = rows.abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    codes = (rows / scale[..., None]).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([_bytes(codes), _bytes(scale)])


def _put_sinks(primary: Tensor, k: Tensor, v: Tensor) -> None:
    """Replaces the first rows of k and v [64, d] by the sink record at the end of `primary`."""
    d = k.shape[1]
    record = primary[-(2 * SINK_TOKENS * d + 8 * SINK_TOKENS):]
    codes = record[:2 * SINK_TOKENS * d].view(torch.int8).view(2, SINK_TOKENS, d)
    scales = record[2 * SINK_TOKENS * d:].clone().view(torch.float32).view(2, SINK_TOKENS, 1)
    k[:SINK_TOKENS], v[:SINK_TOKENS] = codes * scales


@lru_cache(maxsize=None)
def hadamard(size: int) -> Tensor:
    """Orthonormal Walsh-Hadamard matrix [size, size] on blocks of the largest power of two."""
    block = size & -size
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.block_diag(*[matrix / block ** 0.5] * (size // block))


def universal_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [..., d] -> (level index [..., d] int64, norm [..., 1] FP16) of section 6."""
    x = _without_nan(x)
    norm = x.pow(2).mean(-1, keepdim=True).sqrt().clamp(SMALLEST_NORM, LARGEST).half()
    turned = (x / norm.float()) @ hadamard(x.shape[-1]).to(x.device)
    between = ((LEVELS[1:] + LEVELS[:-1]) / 2).to(x.device)
    return torch.bucketize(turned, between), norm


def universal_rows(codes: Tensor, norm: Tensor) -> Tensor:
    """Inverse of `universal_codes`, FP32 [..., d]."""
    turn = hadamard(codes.shape[-1]).to(codes.device)
    return (LEVELS.to(codes.device)[codes] @ turn) * norm.float()


def encode_universal(k: Tensor, v: Tensor, sink: bool) -> Page:
    """The universal page of K, V [n, d]."""
    codes, norms = [], []
    for x, is_key in ((k, True), (v, False)):
        indices, norm = universal_codes(_padded(x))
        pairs = to_lanes(indices.to(torch.uint8), is_key).reshape(-1, 2)
        codes.append(pairs[:, 0] | pairs[:, 1] << 4)
        norms.append(_bytes(norm))
    return Page(torch.cat(codes + norms + ([_encode_sinks(k, v)] if sink else [])))


def universal_page_codes(page: Page, head_size: int) -> list[tuple[Tensor, Tensor]]:
    """Of K, then V: level index [64, d] int64 and norm [64, 1] FP16, as in `universal_codes`."""
    half, data = PAGE_TOKENS * head_size // 2, page.primary
    norms = data[2 * half:2 * half + 4 * PAGE_TOKENS].clone().view(torch.float16)
    parts = []
    for index, is_key in enumerate((True, False)):
        codes = data[index * half:(index + 1) * half]
        lanes = torch.stack([codes & 15, codes >> 4], -1).view(1, head_size // GROUP, 32, 16)
        norm = norms[index * PAGE_TOKENS:(index + 1) * PAGE_TOKENS, None]
        parts.append((from_lanes(lanes.long(), is_key), norm))
    return parts


def decode_universal(page: Page, tokens: int, head_size: int, sink: bool,
                     dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K, V [tokens, d] of a universal page."""
    k, v = (universal_rows(*part) for part in universal_page_codes(page, head_size))
    if sink:
        _put_sinks(page.primary, k, v)
    return k[:tokens].to(dtype), v[:tokens].to(dtype)


def checksum(data: bytes) -> int:
    """Checksum of a page (section 3); ValueError unless the length is a multiple of 8."""
    if len(data) % 8:
        raise ValueError(f"bytes to checksum: found {len(data)}, expected a multiple of 8")
    x = np.frombuffer(data, "<u8")
    k = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, len(x) + 1, dtype=np.uint64)
    v = x ^ k
    turned = (x << np.uint64(32)) | (x >> np.uint64(32))
    terms = (v & np.uint64(0xFFFFFFFF)) * (v >> np.uint64(32)) + turned
    total, mask = int(terms.sum(dtype=np.uint64)), (1 << 64) - 1
    h = total ^ (len(data) * 0xC2B2AE3D27D4EB4F & mask)
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & mask
    return h ^ h >> 32


@dataclass(frozen=True)
class SlabHeader:
    """Header of a slab extent (section 4), in the order of its fields; ends are exclusive."""

    kind: int
    sink: int
    layer_begin: int
    layer_end: int
    head_begin: int
    head_end: int
    tokens: int
    head_size: int
    element_type: int
    pages: int
    block_index: int
    page_bytes: int
    reserved: int
    key: bytes
    codec_set_id: bytes

    def pack(self) -> bytes:
        """The 128 bytes, checksum included."""
        head = SLAB_HEADER.pack(SLAB_MAGIC, SLAB_VERSION, *astuple(self), 0)
        return head + struct.pack("<Q", checksum(head))


def encode_extent(header: SlabHeader, pages: list[bytes]) -> bytes:
    """A slab extent of `pages`, layer-major."""
    sums = b"".join(struct.pack("<Q", checksum(page)) for page in pages)
    head = header.pack() + sums
    return head + b"\0" * (-len(head) % ALIGNMENT) + b"".join(pages)


def decode_extent(data: bytes, sizes: list[int]) -> tuple[SlabHeader, list[bytes]]:
    """Header and pages of an extent whose pages have `sizes` bytes; ValueError if any byte of it
    does not fit."""
    if len(data) < SLAB_HEADER.size + 8:
        raise ValueError(f"bytes of an extent: found {len(data)}, expected >= 128")
    magic, version, *fields, _ = SLAB_HEADER.unpack_from(data)
    if (magic, version) != (SLAB_MAGIC, SLAB_VERSION):
        raise ValueError(f"magic and version: found {magic:#x}, {version}, "
                         f"expected {SLAB_MAGIC:#x}, {SLAB_VERSION}")
    header = SlabHeader(*fields)
    begin = 128 + 8 * len(sizes)
    begin += -begin % ALIGNMENT
    found = (header.pages, header.page_bytes, len(data))
    wanted = (len(sizes), sum(sizes), begin + sum(sizes))
    if found != wanted:
        raise ValueError(f"pages, bytes of pages, bytes: found {found}, expected {wanted}")
    ends = begin + np.cumsum([0, *sizes])
    pages = [data[a:b] for a, b in zip(ends, ends[1:])]
    if encode_extent(header, pages) != data:
        raise ValueError("checksums: they differ from those of the header or of a page")
    return header, pages

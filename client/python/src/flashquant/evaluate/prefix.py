"""The prefix-load protocol: a prefix comes from the node, then new tokens are scored.

The prefix is computed raw, stored as the node would (whole blocks; the first 16 rows of block 0 as
the sink record of FORMAT.md section 5; with the tail rule the last two blocks near-lossless) and
loaded. New tokens attend to it and, raw, to each other. A document gives several such texts,
because the first 32 new tokens of one say little.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flashquant.codec import PAGE_TOKENS, SINK_TOKENS
from flashquant.evaluate.codecs import NamedCodec, sink_rows
from flashquant.evaluate.scoring import Comparison, Passage, excess, standard_error
from flashquant.models import Model, Window
from flashquant.models.text import Document

NEW_TOKENS = 512
TAIL_TOKENS = 2 * PAGE_TOKENS
BUCKETS = ((0, 32), (32, 128), (128, 511), (0, 511))
ERROR_BLOCK = 32


@dataclass(frozen=True)
class PrefixWindow(Window):
    """Queries before `prefix` (a multiple of the chunk) see raw rows, later ones the loaded prefix
    and raw rows behind it. Sinks are part of what is loaded."""

    sinks: int = 0
    recent: int = 0
    prefix: int = PAGE_TOKENS

    def far_end(self, chunk_begin: int) -> int:
        """See `Window`."""
        return self.prefix if chunk_begin >= self.prefix else 0


class LoadedRows:
    """What a load delivers of prefixes of `prefix` rows. `tail`: codec of the last two blocks."""

    def __init__(self, codec: NamedCodec, prefix: int, tail: NamedCodec | None) -> None:
        self._codec, self._prefix, self._tail = codec, prefix, tail

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows`; rows from `prefix` on are not touched."""
        whole = [x.reshape(-1, *x.shape[-3:]) for x in (k, v)]
        loaded = self.load(layer, *(x[:, :, :self._prefix] for x in whole))
        k, v = (torch.cat([x, raw[:, :, self._prefix:]], 2).view(k.shape)
                for x, raw in zip(loaded, whole))
        return k, v

    def load(self, layer: int, k: Tensor, v: Tensor) -> list[Tensor]:
        """K, V [N, G, `prefix`, d] of N prefixes -> what loads deliver."""
        found = [x.clone() for x in self._codec.together(layer, k, v)]
        for x, stored in zip(found, (k, v)):
            x[:, :, :SINK_TOKENS] = sink_rows(stored[:, :, :SINK_TOKENS])
        if self._tail is not None:
            # One block more, because codecs of a codec set leave out the first rows, the sinks.
            last = (x[:, :, -TAIL_TOKENS - PAGE_TOKENS:] for x in (k, v))
            for x, tail in zip(found, self._tail.together(layer, *last)):
                x[:, :, -TAIL_TOKENS:] = tail[:, :, -TAIL_TOKENS:]
        return found


@dataclass(frozen=True)
class Bucket:
    """New tokens begin + 1 .. end."""

    begin: int
    end: int
    perplexity_excess_percent: float
    standard_error_percent: float
    kl_divergence: float
    top1_agreement_percent: float


@dataclass(frozen=True)
class PrefixScore:
    """What one codec loses after a load. `seconds`: wall time of all documents."""

    name: str
    tail_rule: bool
    buckets: list[Bucket]
    seconds: float


def check_prefix(prefix: int) -> None:
    """ValueError unless `prefix` is whole blocks and long enough for sinks and tail."""
    if prefix % PAGE_TOKENS or prefix < 4 * PAGE_TOKENS:
        raise ValueError(f"--prefix: found {prefix}, expected a multiple of {PAGE_TOKENS}, "
                         f">= {4 * PAGE_TOKENS}")


def cut_windows(document: Document, prefix: int, most: int) -> list[Passage]:
    """Up to `most` texts of `prefix` + 512 ids, at equal distances over `document`; what is scored
    in one is not scored in another."""
    room = len(document.ids) - prefix - NEW_TOKENS
    count = min(most, room // NEW_TOKENS + 1)
    begins = [room * number // max(1, count - 1) for number in range(count)]
    return [Passage(f"{document.name} {begin}", document.ids[begin:begin + prefix + NEW_TOKENS],
                    prefix) for begin in begins]


class PrefixEvaluation:
    """Texts of every document, at most `windows`: `prefix` ids loaded, 511 more predicted."""

    def __init__(self, model: Model, documents: list[Document], prefix: int,
                 windows: int = 1) -> None:
        check_prefix(prefix)
        passages = [p for d in documents for p in cut_windows(d, prefix, windows)]
        self.texts = len(passages)
        self._comparison = Comparison(model, passages, PrefixWindow(prefix=prefix), 1, prefix)
        self.prefix = prefix

    def prepare(self) -> float:
        """Runs the raw cache; returns its perplexity."""
        return self._comparison.prepare()

    def score(self, codec: NamedCodec, tail: NamedCodec | None) -> PrefixScore:
        """What `codec` loses; `tail`: codec of the last two blocks, None: no tail rule."""
        start = time.monotonic()
        outcomes = self._comparison.compare(LoadedRows(codec, self.prefix, tail))
        buckets = []
        for begin, end in BUCKETS:
            added = [o.added[begin:end] for o in outcomes]
            kl, same = (torch.cat([x[begin:end] for x in column])
                        for column in zip(*((o.kl, o.same) for o in outcomes)))
            buckets.append(Bucket(
                begin, end, excess(torch.cat(added)), standard_error(added, ERROR_BLOCK),
                float(kl.mean()), 100 * float(same.float().mean())))
        return PrefixScore(codec.name, tail is not None, buckets, time.monotonic() - start)

"""What a codec set costs on texts that it was not calibrated on: the figures it carries."""

import torch
from torch import Tensor

from flashquant.calibrate.statistics import Progress
from flashquant.codec import PAGE_TOKENS, RowCodec, row_codecs
from flashquant.codec_set import LOSS_NAMES, CodecSet
from flashquant.evaluate.codecs import make_codec
from flashquant.evaluate.scoring import (FIRST_SCORED, KL_STEP, Comparison, Outcome, Passage,
                                         excess, standard_error)
from flashquant.models import Model
from flashquant.models.base import hidden_states
from flashquant.models.text import Document

ERROR_BLOCKS = 8  # of each document


def _entry(name: str, bits: float, outcomes: list[Outcome], documents: list[Document],
           tokens: int) -> dict:
    """The entry of one profile name and length (FORMAT.md section 7), of passages that may be
    longer: what comes later does not change what was scored before."""
    scored = tokens - 1 - FIRST_SCORED
    added = [o.added[:scored] for o in outcomes]
    kl = torch.cat([o.kl[:-(-scored // KL_STEP)] for o in outcomes])
    same = torch.cat([o.same[:scored] for o in outcomes])
    return {"profile": name,
            "perplexity_excess_percent": round(excess(torch.cat(added)), 4),
            "standard_error_percent": round(standard_error(added), 4),
            "kl_divergence": round(float(kl.mean()), 6),
            "top1_agreement_percent": round(100 * float(same.float().mean()), 3),
            "bits_per_value": round(bits, 5), "tokens": tokens,
            "text": ", ".join(document.name for document in documents)}


def measure_losses(codec_set: CodecSet, model: Model, documents: list[Document],
                   lengths: list[int], progress: Progress) -> list[dict]:
    """Losses of both profiles in the running protocol, by length, then name.

    Every document is run once, as long as the longest of `lengths` (each >= 512).
    """
    first, longest = FIRST_SCORED, max(lengths)
    comparison = Comparison(model, [Passage(d.name, d.ids[:longest], first) for d in documents])
    progress(f"raw cache, {longest} tokens: perplexity {comparison.prepare():.3f}")
    found = []
    for name in LOSS_NAMES:
        codec = make_codec(name, codec_set, model.head_size, model.device)
        outcomes = comparison.compare(codec.together)
        for tokens in lengths:
            found.append(_entry(name, codec.bits, outcomes, documents, tokens))
            progress("{profile}, {tokens} tokens: {bits_per_value:.3f} bits, perplexity excess "
                     "{perplexity_excess_percent:.2f} +- {standard_error_percent:.2f} %, "
                     "KL divergence {kl_divergence:.5f}".format(**found[-1]))
    return sorted(found, key=lambda entry: lengths.index(entry["tokens"]))


class _ErrorSums:
    """Sees rows on their way; weighted squares of components and of errors, [3, L, G, 2]: first
    what is coded, then the error of base, and of base + refinement."""

    def __init__(self, codec_set: CodecSet, model: Model) -> None:
        self._weight = torch.from_numpy(codec_set.rows["weight"].copy()).to(model.device)
        self._codecs = [[row_codecs(codec_set, layer, head, model.device)
                         for head in range(model.kv_heads)] for layer in range(model.layers)]
        self.sums = torch.zeros(3, model.layers, model.kv_heads, 2, dtype=torch.float64)

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A `Rows` that changes nothing. Looks at whole blocks beyond the first."""
        count = k.shape[1] // PAGE_TOKENS
        keep = torch.linspace(1, count - 1, min(ERROR_BLOCKS, count - 1)).round().long()
        for kv, rows in enumerate((k, v)):
            blocks = rows[:, :count * PAGE_TOKENS].unflatten(1, (count, PAGE_TOKENS))
            for head, x in enumerate(blocks[:, keep.to(rows.device)].flatten(1, 2)):
                self._add(layer, head, kv, self._codecs[layer][head][kv], x)
        return k, v

    def _add(self, layer: int, head: int, kv: int, codec: RowCodec, x: Tensor) -> None:
        u = codec.components(x)
        base, refinement = codec.encode(u, torch.zeros(len(u), dtype=torch.bool, device=u.device))
        weight = self._weight[layer, head, kv]
        for place, rest in enumerate((u, u - codec.values(base, None),
                                      u - codec.values(base, refinement))):
            self.sums[place, layer, head, kv] += float((rest.double().pow(2) * weight).sum())


@torch.no_grad()
def expected_error(codec_set: CodecSet, model: Model, documents: list[Document],
                   tokens: int) -> dict[str, list]:
    """Relative weighted error of both profiles by layer, head, K and V (FORMAT.md section 7), on
    rows of `documents`, each cut to `tokens`."""
    sums = _ErrorSums(codec_set, model)
    for document in documents:
        hidden_states(model, document.ids[:tokens], sums)
    whole, *errors = sums.sums
    return {name: [[[float(f"{x:.5g}") for x in pair] for pair in line]
                   for line in (error / whole).tolist()]
            for name, error in zip(LOSS_NAMES, errors)}

#!/usr/bin/env python3
"""How far the error of real traffic strays from what a codec set predicts (--quality-drift-ratio).

    tests/bench/quality_drift.py [--model build/models/smollm2] [--tokens 1024]

Predicts the weighted error of every (layer, head, K|V) from the first tokens of the test documents
(scripts/prepare_text.sh), as `expected_error` of a codec set does, and prints the ratio that a node
would measure, block by block and four pages of each, on traffic that fits and on traffic that does
not. Five to ten minutes on one core.
"""

import argparse
import base64
from pathlib import Path

import numpy as np
import torch
from flashquant.codec import SINK_TOKENS, row_codecs
from flashquant.codec_set import read_codec_set
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
CODEC_SET = ROOT / "codec_sets/smollm2-135m-instruct.fqcs"
BLOCK = 64
PAGES = 4  # of a block, as server/quality_watch.cc takes of 32 and more
PROFILES = ("compact", "near-lossless")

Cache = list[tuple[torch.Tensor, torch.Tensor]]  # per layer K, V [heads][tokens][d]


class Rows:
    """The model's own K and V, as an engine in BF16 would store them."""

    def __init__(self, model: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def of_ids(self, ids: torch.Tensor) -> Cache:
        with torch.no_grad():
            layers = self._model(ids[None], logits_to_keep=1).past_key_values.layers
        return [tuple(x[0].bfloat16().float() for x in (layer.keys, layer.values))
                for layer in layers]

    def of_text(self, text: str, tokens: int) -> Cache:
        return self.of_ids(self.tokenizer(text, return_tensors="pt").input_ids[0][:tokens])


class Meter:
    """Weighted error and energy of cached rows under a codec set, block by block."""

    def __init__(self, path: Path) -> None:
        self.set = read_codec_set(path)
        self._codecs = [[row_codecs(self.set, layer, head) for head in range(self.set.kv_heads)]
                        for layer in range(self.set.layers)]
        self._weight = torch.from_numpy(self.set.rows["weight"].copy())

    def measure(self, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
        """Error [blocks][pages][K|V][profile] and energy [blocks][pages][K|V]; whole blocks."""
        pages = [[self._side(cache, layer, head, side) for side in (0, 1)]
                 for layer in range(self.set.layers) for head in range(self.set.kv_heads)]
        sums = np.array(pages).transpose(2, 0, 1, 3)  # [blocks][pages][K|V][2 profiles, energy]
        return sums[..., :2], sums[..., 2]

    def _side(self, cache: Cache, layer: int, head: int, side: int) -> np.ndarray:
        rows = cache[layer][side][head]
        rows = rows[:len(rows) // BLOCK * BLOCK]
        codec, weight = self._codecs[layer][head][side], self._weight[layer, head, side]
        u = codec.components(rows)
        sink = torch.arange(len(u)) < SINK_TOKENS
        base, refinement = codec.encode(u, sink)
        values = (codec.values(base, None), codec.values(base, refinement), torch.zeros_like(u))
        sums = [(weight * (u - v) ** 2).sum(1).masked_fill(sink, 0) for v in values]
        return torch.stack(sums, 1).view(-1, BLOCK, 3).sum(1).numpy()


def ratios(expected: np.ndarray, error: np.ndarray, energy: np.ndarray, seed: int) -> np.ndarray:
    """Measured over predicted error of every block, [blocks][profile]."""
    blocks, pages = energy.shape[:2]
    first = np.random.default_rng(seed).integers(pages, size=blocks)
    result = []
    for block in range(blocks):
        chosen = (first[block] + np.arange(PAGES) * pages // PAGES) % pages
        predicted = expected[chosen] * energy[block, chosen][..., None]
        result.append(error[block, chosen].sum((0, 1)) / predicted.sum((0, 1)))
    return np.array(result)


def traffic(rows: Rows, documents: list[Path], tokens: int) -> dict[str, Cache]:
    """By name: what fits, then what does not."""
    kinds = {}
    for document in documents:
        text = document.read_text(errors="replace")
        kinds[f"{document.stem}, second half"] = rows.of_text(text[len(text) // 2:], tokens)
    noise = base64.b64encode(np.random.default_rng(1).bytes(8 * tokens)).decode()
    kinds["base64"] = rows.of_text(noise, tokens)
    vocabulary = rows.tokenizer.vocab_size
    kinds["random tokens"] = rows.of_ids(torch.randint(0, vocabulary, (tokens,)))
    kinds["one token repeated"] = rows.of_ids(torch.full((tokens,), 500))
    cache = rows.of_text(documents[0].read_text(errors="replace"), tokens)
    kinds["rows times 1.3"] = [(1.3 * k, 1.3 * v) for k, v in cache]
    kinds["K and V exchanged"] = [(v, k) for k, v in cache]
    kinds["layers reversed"] = cache[::-1]
    return kinds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "build/models/smollm2")
    parser.add_argument("--tokens", type=int, default=1024)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    documents = sorted((ROOT / "build/text/test").glob("*.txt"))
    rows, meter = Rows(arguments.model), Meter(CODEC_SET)
    first = [meter.measure(rows.of_text(d.read_text(errors="replace"), arguments.tokens))
             for d in documents]
    error, energy = (np.concatenate(parts).sum(0) for parts in zip(*first))
    expected = error / energy[..., None]
    print(f"| traffic, {arguments.tokens} tokens | " + " | ".join(PROFILES) + " |\n| - | - | - |")
    for seed, (name, cache) in enumerate(traffic(rows, documents, arguments.tokens).items()):
        found = ratios(expected, *meter.measure(cache), seed)
        cells = [f"{x.mean():.2f} +- {x.std():.2f}" for x in found.T]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

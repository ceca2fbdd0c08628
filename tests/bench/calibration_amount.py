#!/usr/bin/env python3
"""What half the calibration text costs: defaults of `flashquant calibrate` against half of them.

    tests/bench/calibration_amount.py [--device cuda] [--seeds 0 1 2 | --join FILE...]

Calibrates SmolLM2 on the default sequences and on half as many of each length, for each seed, and
measures compact in the running protocol on the 45 development and test documents of
scripts/prepare_text.sh. Kept in tests/bench/results/calibration_amount.json. Minutes a seed on a
GPU; hours on a CPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from flashquant.calibrate.command import SEQUENCES, choose_sequences, draws_for
from flashquant.calibrate.fit import FitOptions, fit_codec_set
from flashquant.calibrate.statistics import Statistics, measure
from flashquant.evaluate import provenance
from flashquant.evaluate.codecs import make_codec
from flashquant.evaluate.scoring import (ERROR_BLOCK, FIRST_SCORED, Comparison, Outcome, Passage,
                                         excess, standard_error)
from flashquant.models import Model, load_model
from flashquant.models.text import Document, read_documents

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "tests/bench/results/calibration_amount.json"
LENGTHS = (2048, 4096, 8192)
KL_STEP = 16
BITS = (2.12, 4.12)
AMOUNTS = {"whole": SEQUENCES, "half": tuple((n, count // 2) for n, count in SEQUENCES)}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def calibrate(model: Model, documents: list[Document], amount: str, seed: int):
    """What `flashquant calibrate` makes of this amount of text, but for the measured loss."""
    sequences = AMOUNTS[amount]
    statistics = Statistics(plan=amount)
    measure(model, choose_sequences(documents, sequences), statistics, seed, lambda _: None,
            draws=draws_for(sequences))
    options = FitOptions(*BITS, seed=seed, device=model.device)
    return fit_codec_set(statistics, options, model.name, amount, lambda _: None)


def at_length(outcomes: list[Outcome], tokens: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Added negative log likelihoods of each document, and KL divergences, of the first tokens."""
    scored = tokens - 1 - FIRST_SCORED
    return ([o.added[:scored] for o in outcomes],
            torch.cat([o.kl[:-(-scored // KL_STEP)] for o in outcomes]))


def figures(outcomes: dict[str, list[Outcome]], tokens: int) -> dict:
    """Excess and KL divergence of both amounts at one length, and the difference of the excess
    with its standard error, which is smaller than theirs: the documents are the same."""
    found = {"tokens": tokens}
    parts = {}
    for amount, of_amount in outcomes.items():
        parts[amount], kl = at_length(of_amount, tokens)
        found[amount] = {
            "perplexity_excess_percent": round(excess(torch.cat(parts[amount])), 4),
            "standard_error_percent": round(standard_error(parts[amount]), 4),
            "kl_divergence": round(float(kl.mean()), 6)}
    difference = [half - whole for half, whole in zip(parts["half"], parts["whole"])]
    found["difference_percent"] = round(excess(torch.cat(difference)), 4)
    found["difference_error_percent"] = round(standard_error(difference, ERROR_BLOCK), 4)
    return found


def ratio(runs: list[dict], tokens: int, name: str) -> float:
    """Half over whole of the means over seeds."""
    parts = [part for run in runs for part in run["lengths"] if part["tokens"] == tokens]
    return round(sum(p["half"][name] for p in parts) / sum(p["whole"][name] for p in parts), 3)


def keep(report: dict, output: Path) -> None:
    """Writes `report` with the ratios of its runs."""
    names = ("perplexity_excess_percent", "kl_divergence")
    report["half_over_whole"] = {str(n): {name: ratio(report["runs"], n, name) for name in names}
                                 for n in LENGTHS}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def join(files: list[Path], output: Path) -> None:
    """One report of the runs of several; exits with a hint if they are not of the same things."""
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    same = [{k: v for k, v in report.items() if k not in ("runs", "half_over_whole")}
            for report in reports]
    for file, found in zip(files, same):
        differ = [field for field in same[0] if found.get(field) != same[0][field]]
        if differ:
            sys.exit(f"{file}: {', '.join(differ)} differ from those of {files[0]}")
    keep({**same[0], "runs": [run for report in reports for run in report["runs"]]}, output)


def run(args: argparse.Namespace) -> None:
    """Measures; the file is there after the first seed, and grows with each."""
    model = load_model(args.model, args.device)
    calibration, *others = (
        read_documents(args.model, sorted((args.text / kind).glob("*.txt")), max(LENGTHS))
        for kind in ("calibration", "development", "test"))
    documents = [document for part in others for document in part]
    comparison = Comparison(model, [Passage(d.name, d.ids[:max(LENGTHS)], FIRST_SCORED)
                                    for d in documents], kl_step=KL_STEP)
    say(f"raw perplexity {comparison.prepare():.3f}")
    report = {"commit": args.commit or provenance.commit(),
              "machine": provenance.machine(args.device), "model": model.name,
              "amounts": {name: {"sequences": [f"{n}:{count}" for n, count in sequences],
                                 "draws": draws_for(sequences)}
                          for name, sequences in AMOUNTS.items()},
              "documents": [provenance.describe_document(d) for d in documents], "runs": []}
    for seed in args.seeds:
        outcomes = {}
        for amount in AMOUNTS:
            codec = make_codec("compact", calibrate(model, calibration, amount, seed),
                               model.head_size, model.device)
            outcomes[amount] = comparison.compare(codec.together)
            say(f"seed {seed}: {amount} done")
        report["runs"].append({"seed": seed, "lengths": [figures(outcomes, n) for n in LENGTHS]})
        keep(report, args.output)


def main() -> None:
    """Parses arguments, measures or joins, prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "build/models/smollm2")
    parser.add_argument("--text", type=Path, default=ROOT / "build/text")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--commit", default=None, help="default: that of the checkout")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE",
                        help="measure nothing: join what several processes measured")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.join:
        join(args.join, args.output)
    else:
        run(args)
    print(json.dumps(json.loads(args.output.read_text(encoding="utf-8"))["half_over_whole"]))


if __name__ == "__main__":
    main()

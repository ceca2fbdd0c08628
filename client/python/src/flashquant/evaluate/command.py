"""`flashquant eval`: the loss of codecs on a model and texts, as a table or JSON."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from flashquant.codec_set import CodecSet, read_codec_set
from flashquant.evaluate.codecs import CODEC_NAMES, check_fits, make_codec
from flashquant.evaluate.scoring import Evaluation, Score
from flashquant.models import load_model
from flashquant.models.text import read_documents

DEFAULT_CODECS = ["compact", "near-lossless", "hadamard-lm2", "q4_0", "universal", "fp8"]


def add_parser(commands) -> None:
    """Adds `eval` to the subcommands."""
    parser = commands.add_parser(
        "eval", help="measure what codecs lose",
        description="Measures perplexity excess, KL divergence and top-1 agreement of codecs "
        "against the raw cache. Attention runs over coded pages while scoring; the first 16 and "
        "last 128 tokens are raw for every codec.")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR",
                        help="Hugging Face model folder (Llama architecture)")
    parser.add_argument("--codec-set", type=Path, metavar="FILE",
                        help=".fqcs file; needed for compact and near-lossless")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE",
                        help="texts; each is one document, cut to --tokens")
    parser.add_argument("--tokens", type=int, default=2048,
                        help="tokens of each document (default: %(default)s)")
    parser.add_argument("--codecs", nargs="+", choices=CODEC_NAMES, default=DEFAULT_CODECS,
                        metavar="NAME", help=f"any of: {', '.join(CODEC_NAMES)} (default: all)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(),
                        help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; progress goes to standard error."""
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    codec_set = read_codec_set(args.codec_set) if args.codec_set else None
    if codec_set is not None:
        check_fits(codec_set, model)
        _warn_of_length(codec_set, args.tokens)
    codecs = [make_codec(name, codec_set, model.head_size) for name in args.codecs]
    documents = read_documents(args.model, args.text, args.tokens)
    evaluation = Evaluation(model, documents, args.tokens)
    perplexity = evaluation.prepare()
    print(f"raw cache: perplexity {perplexity:.3f}, {len(documents)} documents", file=sys.stderr)
    scores = []
    for codec in codecs:
        scores.append(evaluation.score(codec))
        print(f"{codec.name}: perplexity excess {scores[-1].perplexity_excess_percent:.2f} %, "
              f"{scores[-1].seconds:.0f} s", file=sys.stderr)
    print(_json(model.name, perplexity, evaluation, scores) if args.json else _table(scores))
    return 0


def _warn_of_length(codec_set: CodecSet, tokens: int) -> None:
    """Statistics of short sequences do not hold for long ones (CODEC.md, round two)."""
    if tokens > codec_set.calibrated_tokens:
        print(f"warning: the codec set was calibrated at {codec_set.calibrated_tokens} tokens, "
              f"this measures {tokens}", file=sys.stderr)


def _json(model: str, perplexity: float, evaluation: Evaluation, scores: list[Score]) -> str:
    return json.dumps({"model": model, "tokens": evaluation.tokens,
                       "raw_perplexity": perplexity,
                       "codecs": [asdict(score) for score in scores]}, indent=1)


def _table(scores: list[Score]) -> str:
    """Text table. Ratio: to 16-bit values, checksums and headers of interior blocks included."""
    lines = [f"{'codec':<14} {'bits/value':>10} {'ratio':>6} {'perplexity excess %':>20} "
             f"{'KL divergence':>14} {'top-1 %':>8}"]
    for s in scores:
        excess = f"{s.perplexity_excess_percent:.2f} +- {s.standard_error_percent:.2f}"
        lines.append(f"{s.name:<14} {s.bits_per_value:>10.3f} {16 / s.stored_bits_per_value:>6.2f} "
                     f"{excess:>20} {s.kl_divergence:>14.5f} {s.top1_agreement_percent:>8.2f}")
    return "\n".join(lines)

"""`flashquant eval`: the loss of codecs on a model and texts, as tables, JSON and a plot."""

import argparse
import json
import time
from pathlib import Path

import torch

from flashquant.codec_set import CodecSet, read_codec_set
from flashquant.evaluate import provenance
from flashquant.evaluate.codecs import CODEC_NAMES, check_fits
from flashquant.evaluate.matrix import (
    GREEDY_PREFIX, GREEDY_TOKENS, TASKS, Matrix, make_subjects, say)
from flashquant.evaluate.plot import draw
from flashquant.evaluate.prefix import NEW_TOKENS, check_prefix
from flashquant.evaluate.report import tables
from flashquant.evaluate.tasks import COPY_BEGIN, COPY_TOKENS
from flashquant.models import load_model
from flashquant.models.text import read_documents

PROTOCOLS = ("running", "prefix")
DEFAULT_CODECS = ["compact", "near-lossless", "hadamard-lm2", "q4_0", "universal", "fp8"]
TASK_TOKENS = {"copy": COPY_BEGIN + COPY_TOKENS, "greedy": GREEDY_PREFIX + GREEDY_TOKENS}


def add_parser(commands) -> None:
    """Adds `eval` to the subcommands."""
    parser = commands.add_parser(
        "eval", help="measure what codecs lose",
        description="Measures perplexity excess, KL divergence and top-1 agreement of codecs "
        "against the raw cache. Protocol running: attention runs over coded pages while scoring; "
        "the first 16 and last 128 tokens are raw for every codec. Protocol prefix: a prefix is "
        "loaded as the node stores it, then 511 new tokens are scored.")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR",
                        help="Hugging Face model folder")
    parser.add_argument("--codec-set", type=Path, nargs="+", default=[], metavar="FILE",
                        help=".fqcs files; compact, near-lossless, pca and wush-lm2 use the first, "
                        "each other one adds compact@FILE and near-lossless@FILE")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE",
                        help="texts; each is one document, cut to what a protocol needs")
    parser.add_argument("--codecs", nargs="*", choices=CODEC_NAMES, default=DEFAULT_CODECS,
                        metavar="NAME", help=f"any of: {', '.join(CODEC_NAMES)} "
                        f"(default: {' '.join(DEFAULT_CODECS)})")
    parser.add_argument("--all-codecs", action="store_true", help="the same as naming all of them")
    _add_measurements(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(),
                        help="CPU threads (default: %(default)s)")
    parser.add_argument("--commit", default=None, help="commit that the report names (default: "
                        "that of the checkout)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the JSON here, "
                        "after every codec; what is there of the same things is not measured again")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw loss against bits of the first length of running (SVG)")
    parser.set_defaults(run=run)


def _add_measurements(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", nargs="*", choices=PROTOCOLS, default=["running"],
                        help="default: running")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048], metavar="N",
                        help="lengths of documents in running (default: 2048)")
    parser.add_argument("--prefix", type=int, nargs="+", default=[2048], metavar="N",
                        help="lengths of loaded prefixes (default: 2048)")
    parser.add_argument("--prefix-windows", type=int, default=4, metavar="N",
                        help="at most N texts of each document in prefix (default: %(default)s)")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[],
                        help="copying (running); UUID look-up, greedy decoding, HumanEval (behind "
                        "a loaded prefix with the tail rule)")
    parser.add_argument("--recall-keys", type=int, nargs="+", default=[100], metavar="N",
                        help="pairs of key and value to look up in (default: 100)")
    parser.add_argument("--recall-seeds", type=int, default=4, metavar="N",
                        help="passages of recall, 10 look-ups each (default: %(default)s)")
    parser.add_argument("--problems", type=int, default=100, metavar="N",
                        help="problems of HumanEval (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measures and prints; progress goes to standard error."""
    start = time.monotonic()
    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: found cuda, but torch sees no CUDA device")
    for prefix in args.prefix:
        check_prefix(prefix)
    if args.prefix_windows < 1:
        raise ValueError(f"--prefix-windows: found {args.prefix_windows}, expected >= 1")
    model = load_model(args.model, args.device)
    codec_sets = {file.stem: read_codec_set(file) for file in args.codec_set}
    for codec_set in codec_sets.values():
        check_fits(codec_set, model)
        _warn_of_length(codec_set, args)
    names = list(CODEC_NAMES) if args.all_codecs else args.codecs
    subjects = make_subjects(names, codec_sets, model.head_size, args.device)
    documents = read_documents(args.model, args.text, _tokens_needed(args))
    report = _resume(args.output, _header(args, model.name, codec_sets, documents))
    before = report.get("seconds", 0.0)

    def keep() -> None:
        report["seconds"] = round(before + time.monotonic() - start, 1)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    _measure(args, Matrix(model, args.model, args.device, documents, subjects, report, keep))
    keep()
    print(json.dumps(report, indent=1) if args.json else tables(report))
    if args.plot:
        args.plot.write_text(draw(report), encoding="utf-8")
    return 0


def _resume(output: Path | None, header: dict) -> dict:
    """What an earlier call left in `output`, if it measured the same things; else `header`. One of
    the two may know more codec sets, behind those of the other."""
    if output is None or not output.exists():
        return header
    old = json.loads(output.read_text(encoding="utf-8"))
    sets = sorted((old.get("codec_sets", []), header["codec_sets"]), key=len)
    if sets[0] == sets[1][:len(sets[0])]:
        old["codec_sets"] = header["codec_sets"] = sets[1]
    differ = [field for field, value in header.items() if old.get(field) != value]
    if differ:
        say(f"{output} is of another {', '.join(differ)}: measured anew")
        return header
    say(f"goes on where {output} ends")
    return old


def _measure(args: argparse.Namespace, matrix: Matrix) -> None:
    for tokens in args.tokens if "running" in args.protocol else []:
        matrix.running(tokens)
    for prefix in args.prefix if "prefix" in args.protocol else []:
        matrix.prefix(prefix, args.prefix_windows)
    if "copy" in args.tasks:
        matrix.copy()
    for keys in args.recall_keys if "recall" in args.tasks else []:
        matrix.recall(keys, args.recall_seeds)
    if "greedy" in args.tasks:
        matrix.greedy()
    if "human-eval" in args.tasks:
        matrix.human_eval(args.problems)


def _tokens_needed(args: argparse.Namespace) -> int:
    """Tokens that every document must have."""
    needed = [TASK_TOKENS.get(task, 0) for task in args.tasks]
    if "running" in args.protocol:
        needed += args.tokens
    if "prefix" in args.protocol:
        needed += [prefix + NEW_TOKENS for prefix in args.prefix]
    return max(needed, default=1)


def _header(args: argparse.Namespace, model: str, codec_sets: dict[str, CodecSet],
            documents: list) -> dict:
    """Everything of the report that is no measurement."""
    return {"commit": args.commit or provenance.commit(),
            "machine": provenance.machine(args.device), "model": model,
            "codec_sets": [provenance.describe_codec_set(codec_set, label)
                           for label, codec_set in codec_sets.items()],
            "documents": [provenance.describe_document(d) for d in documents]}


def _warn_of_length(codec_set: CodecSet, args: argparse.Namespace) -> None:
    """Statistics of short sequences do not hold for long ones (CODEC.md, round two)."""
    longest = max(args.tokens if "running" in args.protocol else [0])
    if longest > codec_set.calibrated_tokens:
        say(f"warning: the codec set was calibrated at {codec_set.calibrated_tokens} tokens, "
            f"this measures {longest}")

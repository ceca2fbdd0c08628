"""`flashquant calibrate`: statistics of a model on texts -> codec-set file."""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch

from flashquant.calibrate.fit import FitOptions, fit_codec_set
from flashquant.calibrate.inspect import inspect
from flashquant.calibrate.loss import expected_error, measure_losses
from flashquant.calibrate.statistics import Sequence, Statistics, measure
from flashquant.calibrate.transform import DAMPING
from flashquant.codec_set import HEAD_SIZES, CodecSet, read_codec_set, write_codec_set
from flashquant.models import ARCHITECTURES, Model, load_model
from flashquant.models.text import Document, read_documents, spread_sequences

CREATED_BY = "flashquant calibrate 3"
SEQUENCES = ((8192, 4), (4096, 6), (1024, 20))
SAMPLE_BLOCKS = 384
MOST_DRAWS = 6
DRAW_COST = 0.6  # of another draw, in runs of a sequence with one; two cores
LEAST_TOKENS = 512


def add_parser(commands) -> None:
    """Adds `calibrate` to the subcommands."""
    parser = commands.add_parser(
        "calibrate", help="make a codec set for a model",
        description="Measures covariance and sensitivity of K and V on texts, fits transforms, "
        "bit allocation and tables, measures the loss on other texts, writes a codec set. Text "
        "should be like what will be served and of the same length; 12 sequences or more.")
    _add_inputs(parser)
    _add_choices(parser)
    parser.set_defaults(run=run)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--inspect", type=Path, metavar="FILE",
        help="draw the bits of the .fqcs FILE by layer and head instead of calibrating: in the "
        "terminal, or into an .svg file with -o")
    add("--model", type=Path, metavar="DIR",
        help=f"Hugging Face model folder ({', '.join(ARCHITECTURES)})")
    add("--text", type=Path, nargs="+", metavar="FILE",
        help="texts to calibrate on, each longer than the longest sequence")
    add("--test-text", type=Path, nargs="+", metavar="FILE",
        help="other texts, on which the loss is measured (default: every third --text is held out "
        "for that)")
    add("-o", "--output", type=Path, metavar="FILE", help=".fqcs file to write")
    add("--name", help="model name stored in the file (default: name of the folder)")
    add("--statistics", type=Path, metavar="FILE",
        help="keep what was measured in FILE, every minute; if FILE exists, go on from there")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bits", type=float, action="append", metavar="B",
        help="twice: bits per value of base, then of base + refinement (default: 2.12 4.12)")
    add("--sequences", type=_length_and_count, nargs="+", default=list(SEQUENCES),
        metavar="TOKENS:COUNT", help="how many sequences of which length are run; the longest as "
        f"long as what will be served (default: {' '.join(f'{n}:{c}' for n, c in SEQUENCES)})")
    add("--draws", type=int, metavar="N",
        help="labels drawn per position for the sensitivity, each a backward pass (default: as "
        f"many as take the time that less text saves, 1..{MOST_DRAWS})")
    add("--sample-blocks", type=int, default=SAMPLE_BLOCKS,
        help="blocks of 64 rows kept for tables (default: %(default)s)")
    add("--profiles", type=int, default=32,
        help="most (K, V) profiles, 1..32 (default: %(default)s)")
    add("--damping", type=float, default=DAMPING,
        help="share of the mean sensitivity added to all channels (default: %(default)s)")
    add("--test-tokens", type=int, default=2048,
        help="tokens of each test text (default: %(default)s)")
    add("--loss-tokens", type=int, nargs="+", metavar="N",
        help="measure the loss at these lengths too; twice the longest sequence shows what use "
        "beyond the calibrated length costs")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(),
        help="CPU threads (default: %(default)s)")


def _length_and_count(text: str) -> tuple[int, int]:
    """`TOKENS:COUNT` of the command line."""
    tokens, _, count = text.partition(":")
    if not (tokens.isdecimal() and count.isdecimal() and int(count) > 0
            and int(tokens) >= LEAST_TOKENS):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected TOKENS:COUNT with TOKENS >= {LEAST_TOKENS}, COUNT >= 1")
    return int(tokens), int(count)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _check(args: argparse.Namespace) -> tuple[float, float]:
    """Bits of base and of base + refinement; ValueError if an argument makes no sense."""
    for name in ("model", "text", "output"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name}: missing, needed unless --inspect is given")
    bits = args.bits or [2.12, 4.12]
    if len(bits) != 2 or not 0 < bits[0] < bits[1] <= 16:
        raise ValueError(f"--bits: found {bits}, expected two, rising, in (0, 16]")
    least = {"test_tokens": LEAST_TOKENS, "profiles": 1, "sample_blocks": 1, "draws": 1}
    for name, lowest in least.items():
        if (getattr(args, name) or lowest) < lowest:
            raise ValueError(f"--{name.replace('_', '-')}: found {getattr(args, name)}, "
                             f"expected >= {lowest}")
    if args.profiles > 32:
        raise ValueError(f"--profiles: found {args.profiles}, expected <= 32")
    if min(args.loss_tokens or [LEAST_TOKENS]) < LEAST_TOKENS:
        raise ValueError(f"--loss-tokens: found {min(args.loss_tokens)}, "
                         f"expected >= {LEAST_TOKENS}")
    return bits[0], bits[1]


def split_texts(texts: list[Path], test_texts: list[Path] | None) -> tuple[list[Path], list[Path]]:
    """Texts to calibrate on and others to measure the loss on; ValueError if they overlap."""
    if test_texts is None:
        if len(texts) < 2:
            raise ValueError(f"--text: found {len(texts)} text and no --test-text, expected two or "
                             "more, so that one can be held out")
        test_texts = texts[2::3] or texts[-1:]
        texts = [text for text in texts if text not in test_texts]
    both = sorted({text.resolve() for text in texts} & {text.resolve() for text in test_texts})
    if both:
        raise ValueError(f"--test-text: {both[0]} is in --text too; the loss would look too small")
    return texts, test_texts


def choose_sequences(documents: list[Document], sequences: list[tuple[int, int]],
                     sample_blocks: int = SAMPLE_BLOCKS) -> list[Sequence]:
    """What to run of `documents`: (tokens, count) each. `sample_blocks` for tables come from the
    longest and those half as long."""
    longest = max(tokens for tokens, _ in sequences)
    total = sum(tokens * count for tokens, count in sequences if 2 * tokens >= longest)
    found = []
    for tokens, count in sequences:
        blocks = max(1, round(sample_blocks * tokens / total)) if 2 * tokens >= longest else 0
        found += [Sequence(ids, blocks) for ids in spread_sequences(documents, tokens, count)]
    return found


def draws_for(sequences: list[tuple[int, int]]) -> int:
    """Labels per position, 1 to MOST_DRAWS, that take the time which less text than the default's
    saves: what short text lacks is Fisher matrices, and their noise is in the drawn labels."""
    tokens, default = (sum(n * count for n, count in some) for some in (sequences, SEQUENCES))
    return min(MOST_DRAWS, 1 + max(0, round((default / tokens - 1) / DRAW_COST)))


def _statistics(args: argparse.Namespace, model: Model) -> Statistics:
    documents = read_documents(args.model, args.text, max(n for n, _ in args.sequences))
    sequences = choose_sequences(documents, args.sequences, args.sample_blocks)
    draws = args.draws or draws_for(args.sequences)
    digest = hashlib.sha256(f"{model.name} {args.seed} {args.device} {draws}".encode())
    for sequence in sequences:
        digest.update(f"{sequence.blocks} {sequence.ids.tolist()}".encode())
    statistics = Statistics(plan=digest.hexdigest())
    if args.statistics and args.statistics.exists():
        statistics = Statistics.load(args.statistics)
        if statistics.plan != digest.hexdigest():
            raise ValueError(f"{args.statistics}: measured with another model, text, seed, device, "
                             f"--draws or --sequences: found plan {statistics.plan[:8]}, expected "
                             f"{digest.hexdigest()[:8]}; name another file")
        _say(f"statistics of {statistics.done} sequences from {args.statistics}")
    _say(f"{len(sequences)} sequences, {draws} labels drawn per position")
    measure(model, sequences, statistics, args.seed, _say, args.statistics, draws)
    return statistics


def _measure(codec_set: CodecSet, args: argparse.Namespace, model: Model,
             documents: list[Document]) -> None:
    """Puts what it costs into `codec_set`: loss at --test-tokens and at each --loss-tokens."""
    lengths = [args.test_tokens, *(args.loss_tokens or [])]
    codec_set.expected_error = expected_error(codec_set, model, documents, args.test_tokens)
    for entry in measure_losses(codec_set, model, documents, lengths, _say):
        if entry["tokens"] == args.test_tokens:
            codec_set.loss[entry["profile"]] = {k: v for k, v in entry.items() if k != "profile"}
        else:
            codec_set.loss_by_length.append(entry)


def run(args: argparse.Namespace) -> int:
    """Makes the file, or draws one; progress goes to standard error."""
    if args.inspect is not None:
        inspect(read_codec_set(args.inspect), args.output)
        return 0
    base_bits, total_bits = _check(args)
    torch.set_num_threads(args.threads)
    model = load_model(args.model, args.device)
    if model.head_size not in HEAD_SIZES:
        raise ValueError(f"head size: found {model.head_size}, expected one of {HEAD_SIZES}")
    args.text, args.test_text = split_texts(args.text, args.test_text)
    longest = max([args.test_tokens, *(args.loss_tokens or [])])
    if longest > model.context_tokens:
        name = "--test-tokens" if longest == args.test_tokens else "--loss-tokens"
        raise ValueError(f"{name}: found {longest}, the model has {model.context_tokens}")
    test = read_documents(args.model, args.test_text, longest)
    statistics = _statistics(args, model)
    options = FitOptions(base_bits, total_bits, args.profiles, args.damping, args.seed, args.device)
    codec_set = fit_codec_set(statistics, options, args.name or model.name, CREATED_BY, _say)
    _measure(codec_set, args, model, test)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_codec_set(codec_set, args.output)
    _say(f"wrote {args.output}, codec set id {codec_set.id.hex()}")
    return 0

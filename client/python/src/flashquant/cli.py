"""The command `flashquant`: `calibrate` makes a codec set, `eval` measures what codecs lose,
`eval-vllm` the same through a node and vLLM."""

import argparse
import sys

from flashquant import __version__
from flashquant.codec_set import CodecSetError


def _parser() -> argparse.ArgumentParser:
    from flashquant.calibrate import command as calibrate
    from flashquant.evaluate import command as evaluate
    from flashquant.evaluate import through_vllm_command as evaluate_vllm

    parser = argparse.ArgumentParser(prog="flashquant", description=__doc__)
    parser.add_argument("--version", action="version", version=f"flashquant {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    calibrate.add_parser(commands)
    evaluate.add_parser(commands)
    evaluate_vllm.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 arguments or input do not fit together or cannot be read, 2 arguments
    that the parser does not take."""
    try:
        args = _parser().parse_args(arguments)
        return args.run(args)
    except ModuleNotFoundError as error:
        print(f"flashquant: {error}; in a checkout: pip install './client/python[calibrate]'",
              file=sys.stderr)
        return 1
    except (CodecSetError, OSError, ValueError) as error:
        print(f"flashquant: {error}", file=sys.stderr)
        return 1

"""Layout of all C++ files, and clang-tidy on those that parse bytes from elsewhere."""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lint

# The files that stand between the outside and the store; `make lint` does all.
WATCHED = ["kernels/codec_set.cc", "kernels/slab.cc", "server/options.cc"]


def test_clang_format_changes_nothing():
    assert lint.format_problems() == ""


def test_clang_tidy_finds_nothing_in_the_parsers():
    build = pathlib.Path(os.environ.get("FQ_BUILD", lint.ROOT / "build/release"))
    assert lint.tidy_problems(build, WATCHED) == ""

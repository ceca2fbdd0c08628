#!/usr/bin/env python3
"""clang-format over all C++ files, clang-tidy over some.

    tests/lint.py [--all] [--build build/release] [FILE...]

clang-tidy takes the named files; with --all every .cc of the product; else those that differ from
the last commit, or the last commit's own where nothing differs.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PRODUCT = ("kernels", "server", "client")


def git(*args: str) -> list[str]:
    """Lines that git prints."""
    return subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout.splitlines()


def format_problems() -> str:
    """What clang-format would change, as its own errors; empty when nothing."""
    files = [f for f in git("ls-files", "-co", "--exclude-standard", "*.h", "*.cc", "*.cu", "*.cuh")
             if (ROOT / f).is_file()]
    run = subprocess.run(["clang-format-14", "--dry-run", "-Werror", *files], cwd=ROOT,
                         capture_output=True, text=True)
    return run.stderr if run.returncode else ""


def tidy_problems(build: pathlib.Path, files: list[str]) -> str:
    """What clang-tidy reports on `files`; empty when nothing."""
    def one(file: str) -> str:
        run = subprocess.run(["clang-tidy-14", "-p", str(build), "--quiet", file], cwd=ROOT,
                             capture_output=True, text=True)
        return run.stdout + run.stderr if run.returncode else ""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return "".join(pool.map(one, files))


def product_files() -> list[str]:
    return [f for f in git("ls-files", *(f"{p}/*.cc" for p in PRODUCT)) if (ROOT / f).is_file()]


def changed_files() -> list[str]:
    """Product files that differ from the last commit, or those of the last commit."""
    changed = git("diff", "--name-only", "HEAD") or git(
        "diff-tree", "--root", "--no-commit-id", "--name-only", "-r", "HEAD")
    return sorted(set(changed) & set(product_files()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args()
    files = args.files or (product_files() if args.all else changed_files())
    problems = format_problems() + tidy_problems(args.build, files)
    print(problems or f"lint: no problems (clang-tidy on {len(files)} files)")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Puts a report of `make quality` into the tree: figures, picture, tables of kernels/QUALITY.md.

    tests/bench/quality_page.py [REPORT..., default build/quality/quality.json]

Several reports are of processes that shared the measurement among them. Writes
tests/bench/results/quality.json and kernels/quality.svg, and replaces the blocks of the page
between `<!-- NAME: ... -->` and `<!-- end of NAME -->`.
"""

import json
import pathlib
import sys

from flashquant.evaluate.merge import merge_reports
from flashquant.evaluate.plot import draw
from flashquant.evaluate.report import claims_table, tables

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULT = ROOT / "tests/bench/results/quality.json"
PAGE = ROOT / "kernels/QUALITY.md"
PICTURE = ROOT / "kernels/quality.svg"
# Of the design study (CODEC.md, 2,048 tokens, sets A and B of three or six documents):
# method there -> codec here, excess % and KL divergence as it prints them.
STUDY = [
    ("FP8 e4m3", "fp8", ".04 / .11", ".0016 / .0010"),
    ("q4_0 g32", "q4_0", ".91 / .91", ".0086 / .0054"),
    ("token INT4 g64 asym", "int4", "1.06 / -", ".0104 / -"),
    ("Hadamard + Lloyd-Max 3 bit", "hadamard-lm3", "2.6 / 1.05", ".0215 / .0146"),
    ("Hadamard + Lloyd-Max 2 bit", "hadamard-lm2", "10.6 / 6.7", ".096 / .062"),
    ("HIGGS 2-D x16", "higgs-2d", "10.3 / -", ".086 / -"),
    ("KIVI-2 g32", "kivi-2", "14.0 / 11.0", ".124 / .095"),
    ("balanced weighted transform + LM2", "wush-lm2", "13.6 / 9.8", ".125 / .092"),
    ("plain PCA + sensitivity allocation", "pca", "2.8 / 2.4", ".044 / .028"),
    ("fq, the format, 2.125 bits", "compact", ".98", ".0124"),
    ("fq, base + refinement, 4.125 bits", "near-lossless", ".11", ".0015"),
]


def study_table(report: dict) -> str:
    """Figures of the study beside ours of the same length."""
    part = next((p for p in report.get("running", []) if p["tokens"] == 2048), {"codecs": []})
    ours = {score["name"]: score for score in part["codecs"]}
    lines = ["| method | study: excess % | study: KL divergence | excess % | KL divergence |",
             "| --- | --- | --- | --- | --- |"]
    for method, name, excess, kl in STUDY:
        if name in ours:
            lines.append(f"| {method} | {excess} | {kl} | "
                         f"{ours[name]['perplexity_excess_percent']:.2f} | "
                         f"{ours[name]['kl_divergence']:.4f} |")
    return "\n".join(lines)


BLOCKS = {"promises": claims_table, "study": study_table, "tables": tables}


def page_with(page: str, report: dict) -> str:
    """`page` with what `report` says between the marks of each block."""
    for name, text in BLOCKS.items():
        begin, end = f"<!-- {name}: tests/bench/quality_page.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n{text(report)}\n\n{end}{after}"
    return page


def main() -> int:
    """The exit code."""
    sources = sys.argv[1:] or [ROOT / "build/quality/quality.json"]
    report = merge_reports([json.loads(pathlib.Path(source).read_text(encoding="utf-8"))
                            for source in sources])
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(draw(report), encoding="utf-8")
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

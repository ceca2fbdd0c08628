#!/usr/bin/env python3
"""Puts a report of `make quality` into the tree: figures, picture, tables of kernels/QUALITY.md.

    tests/bench/quality_page.py [REPORT..., default build/quality/quality.json]

Reports of several calls of `flashquant eval` (one for each protocol, say) are joined if they are of
the same commit, machine, codec sets and texts. Writes tests/bench/results/quality.json and
kernels/quality.svg, and replaces the tables of the page.
"""

import json
import pathlib
import sys

from flashquant.evaluate.plot import draw
from flashquant.evaluate.report import tables

ROOT = pathlib.Path(__file__).parent.parent.parent
RESULT = ROOT / "tests/bench/results/quality.json"
PAGE = ROOT / "kernels/QUALITY.md"
PICTURE = ROOT / "kernels/quality.svg"
SAME = ("commit", "machine", "model", "documents")
PARTS = ("running", "prefix", "copy", "recall", "greedy", "human_eval")
BEGIN, END = "<!-- tables: tests/bench/quality_page.py -->\n", "<!-- end of tables -->\n"


def join(reports: list[dict]) -> dict:
    """One report with the parts of all; ValueError if they are not of the same things. A report
    may know fewer codec sets than the first."""
    joined = dict(reports[0])
    for report in reports[1:]:
        for field in SAME:
            if report[field] != joined[field]:
                raise ValueError(f"{field}: one report has {joined[field]}, one {report[field]}")
        if report["codec_sets"] != joined["codec_sets"][:len(report["codec_sets"])]:
            raise ValueError("codec_sets: they differ between the reports")
        joined["seconds"] = round(joined["seconds"] + report["seconds"], 1)
        joined |= {name: report[name] for name in PARTS if name in report}
    return joined


def page_with(page: str, report: dict) -> str:
    """`page` with the tables of `report` between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables(report)}\n\n{END}{after}"


def main() -> int:
    """The exit code."""
    files = sys.argv[1:] or [ROOT / "build/quality/quality.json"]
    report = join([json.loads(pathlib.Path(f).read_text(encoding="utf-8")) for f in files])
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(draw(report), encoding="utf-8")
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

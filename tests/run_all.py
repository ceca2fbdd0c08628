#!/usr/bin/env python3
"""Builds everything, runs every test, and ends with one line: `N passed, N failed`.

    tests/run_all.py [--build build/release] [--only build|ctest|pytest]

C++ tests run under ctest, all others under pytest; both write JUnit files to BUILD/reports, which
are summed here. A skip counts as a failure unless tests/allowed_skips.txt names it with a reason.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED_SKIPS = ROOT / "tests/allowed_skips.txt"
SLOWEST_SHOWN = 8
STEP_SECONDS_MAX = 2400
HANG_SECONDS = 600  # of one Python test, then all stacks are printed
# Each has one thread (tests/conftest.py), so two keep two cores busy.
PYTHON_PARTS = {"processes": ["tests/e2e", "tests/gpu"],
                "others": ["tests", "--ignore=tests/e2e", "--ignore=tests/gpu"]}


@dataclass
class Result:
    """Of one test, or of a step that cannot be split."""
    name: str
    outcome: str  # passed, failed, skipped
    seconds: float = 0.0
    detail: str = ""


@dataclass
class Totals:
    results: list[Result] = field(default_factory=list)
    allowed_skips: list[tuple[re.Pattern, str]] = field(default_factory=list)

    def allowed(self, name: str) -> str | None:
        """The reason for which a test may be skipped, or None."""
        return next((why for pattern, why in self.allowed_skips if pattern.search(name)), None)

    def failed(self) -> list[Result]:
        """Failures, and skips without a reason on file."""
        return [r for r in self.results if r.outcome == "failed" or (
            r.outcome == "skipped" and self.allowed(r.name) is None)]


def read_allowed_skips() -> list[tuple[re.Pattern, str]]:
    """Lines of `regular expression: reason`."""
    lines = [line for line in ALLOWED_SKIPS.read_text().splitlines()
             if line.strip() and not line.startswith("#")]
    pairs = [line.rsplit(": ", 1) for line in lines]
    return [(re.compile(pattern), reason) for pattern, reason in pairs]


def read_junit(path: pathlib.Path) -> list[Result]:
    """The results of a JUnit file; no file is one failure."""
    if not path.exists():
        return [Result(path.stem, "failed", 0, f"no report {path}: the runner did not finish")]
    results = []
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        parts = [case.get("classname") or "", case.get("name") or ""]
        name = "::".join(dict.fromkeys(p for p in parts if p))  # ctest gives the name twice
        bad = [e for e in case if e.tag in ("failure", "error")]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        texts = [*bad, *case.iter("system-out")] if bad else []
        detail = "\n".join(e.text or e.get("message") or "" for e in texts)
        results.append(Result(name, outcome, float(case.get("time") or 0), detail))
    return results or [Result(path.stem, "failed", 0, f"{path} holds no test")]


def run_step(name: str, command: list[str]) -> Result:
    """Runs a command with its output shown; past the limit it is ended with all it started."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(STEP_SECONDS_MAX)
        detail = f"exit {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code, detail = 1, f"not done after {STEP_SECONDS_MAX} s"
    return Result(name, "failed" if code else "passed", time.monotonic() - begin, detail)


def run_ctest(build: pathlib.Path) -> list[Result]:
    """All C++ tests; failing ones print in full."""
    report = build / "reports/ctest.xml"
    step = run_step("C++ tests", [
        "ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error",
        "-j", str(os.cpu_count()), "--output-junit", str(report.absolute())])
    results = read_junit(report)
    if step.outcome == "failed" and not any(r.outcome == "failed" for r in results):
        results.append(step)
    return results


def run_pytest(build: pathlib.Path) -> list[Result]:
    """tests/ of Python and deploy, end to end, fuzz, tidy and lint: PYTHON_PARTS at once."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = pool.map(lambda name: run_python_part(build, name), PYTHON_PARTS)
        return [result for part in parts for result in part]


def run_python_part(build: pathlib.Path, name: str) -> list[Result]:
    """One process; what both print is mixed, what failed is in the reports."""
    report = build / f"reports/pytest-{name}.xml"
    step = run_step(f"Python tests, {name}", [
        sys.executable, "-m", "pytest", *PYTHON_PARTS[name], "-q", "--no-header", "--tb=short",
        "-p", "no:cacheprovider", f"--junitxml={report.absolute()}",
        "-o", f"faulthandler_timeout={HANG_SECONDS}"])
    results = read_junit(report)
    if step.outcome == "failed" and not any(r.outcome == "failed" for r in results):
        results.append(step)
    return results


def report(totals: Totals) -> int:
    """Prints failures, skips and the slowest tests; the count is the last line."""
    failed = totals.failed()
    print("\n== slowest")
    for result in sorted(totals.results, key=lambda r: -r.seconds)[:SLOWEST_SHOWN]:
        print(f"{result.seconds:8.1f} s  {result.name}")
    skipped = [r for r in totals.results if r.outcome == "skipped" and r not in failed]
    for result in skipped:
        print(f"skipped {result.name}: {totals.allowed(result.name)}")
    for result in failed:
        print(f"\n== {result.outcome} {result.name}\n{result.detail}")
    passed = sum(r.outcome == "passed" for r in totals.results)
    tail = f", {len(skipped)} skipped" if skipped else ""
    print(f"\n{passed} passed, {len(failed)} failed{tail}")
    return bool(failed) or not passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--only", choices=["build", "ctest", "pytest"])
    args = parser.parse_args()
    build = args.build.resolve()
    (build / "reports").mkdir(parents=True, exist_ok=True)
    for old in (build / "reports").glob("*.xml"):
        old.unlink()
    os.environ["FQ_BUILD"] = str(build)  # where the Python tests find flashquantd and fqctl
    totals = Totals(allowed_skips=read_allowed_skips())
    if args.only in (None, "build"):
        totals.results.append(run_step("build", ["cmake", "--build", str(build)]))
    if not totals.failed():
        if args.only in (None, "ctest"):
            totals.results += run_ctest(build)
        if args.only in (None, "pytest"):
            totals.results += run_pytest(build)
    return report(totals)


if __name__ == "__main__":
    sys.exit(main())

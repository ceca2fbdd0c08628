"""The test driver counts what it is given, and nothing gets lost."""

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run_all

CTEST = """<testsuite>
<testcase name="A.Passes" classname="A.Passes" time="0.5" status="run"/>
<testcase name="A.Fails" classname="A.Fails" status="fail"><failure message="Failed"/>
<system-out>a.cc:7: expected 1, got 2</system-out></testcase>
<testcase name="CudaBackend.Encodes" classname="x" status="notrun"><skipped message="s"/></testcase>
<testcase name="B.Skipped" classname="B.Skipped" status="notrun"><skipped message="s"/></testcase>
</testsuite>"""
PYTEST = """<testsuites><testsuite><testcase classname="tests.e2e.test_a" name="test_b" time="1"/>
<testcase classname="tests.e2e.test_a" name="test_c"><error message="boom">stack</error></testcase>
</testsuite></testsuites>"""
EXPECTED_FAILURES = {"A.Fails", "B.Skipped", "tests.e2e.test_a::test_c"}


@pytest.fixture
def totals(tmp_path) -> run_all.Totals:
    """Of both reports above."""
    result = run_all.Totals(allowed_skips=[(re.compile(r"\bCuda"), "needs a GPU")])
    for name, text in (("ctest", CTEST), ("pytest", PYTEST)):
        (tmp_path / name).write_text(text)
        result.results += run_all.read_junit(tmp_path / name)
    return result


def test_skip_without_a_reason_on_file_is_a_failure(totals):
    assert {r.name for r in totals.failed()} == EXPECTED_FAILURES


def test_last_line_sums_both_reports(totals, capsys):
    assert run_all.report(totals) == 1
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "2 passed, 3 failed, 1 skipped"
    for part in ("expected 1, got 2", "stack", "skipped x::CudaBackend.Encodes: needs a GPU"):
        assert part in text


def test_all_passed_is_exit_code_0(totals, capsys):
    totals.results = [r for r in totals.results if r.outcome == "passed"]
    assert run_all.report(totals) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 0 failed"


def test_no_test_at_all_is_a_failure(capsys):
    assert run_all.report(run_all.Totals()) == 1


@pytest.mark.parametrize("text", [None, "<testsuite/>"])
def test_report_that_is_missing_or_empty_is_a_failure(text, tmp_path):
    path = tmp_path / "ctest.xml"
    if text:
        path.write_text(text)
    assert [r.outcome for r in run_all.read_junit(path)] == ["failed"]


def test_step_past_its_limit_is_ended(monkeypatch):
    monkeypatch.setattr(run_all, "STEP_SECONDS_MAX", 0.5)
    assert run_all.run_step("sleep", ["sh", "-c", "sleep 60 & wait"]).outcome == "failed"


def test_parts_of_the_python_tests_leave_none_out():
    first, others = run_all.PYTHON_PARTS.values()
    assert others == ["tests", *(f"--ignore={path}" for path in first)]


def test_allowed_skips_all_have_a_reason():
    assert all(reason for _, reason in run_all.read_allowed_skips())

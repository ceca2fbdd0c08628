"""What runs on a machine with GPUs is there, is counted, and can be carried to one."""

import os
import subprocess
import sys
from pathlib import Path

import bench_nccl
import bench_node
import pytest
from checks import Check, Checks
from suite import Suite

ROOT = Path(__file__).parents[2]
BUILD = ROOT / os.environ.get("FQ_BUILD", "build/release")


def python(name: str, code: str, seconds: float = 60, **environment: str) -> Check:
    """A check that is a line of Python."""
    return Check(name, [sys.executable, "-c", code], seconds, environment)


def test_every_check_has_what_it_runs():
    checks = Checks(BUILD)
    for name in checks.programs():
        assert (BUILD / "bin" / name).is_file()
    for group in checks.groups.values():
        for check in group():
            scripts = [word for word in check.command if word.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts), check


def test_every_scenario_is_run():
    bench = [check.name for group in ("bench", "bench2") for check in Checks(BUILD).groups[group]()]
    for script in (bench_node, bench_nccl):
        wanted = [f"{script.__name__}.{name}" for name in script.SCENARIOS]
        assert [name for name in bench if name.startswith(script.__name__)] == wanted


@pytest.mark.parametrize(("script", "why"), [
    ("echo seen", ""),
    ("echo seen; exit 3", "exit code 3"),
    ("echo seen; sleep 600", "not done after 10 s"),  # enough for a shell to begin
])
def test_outcome_and_log(tmp_path, capsys, script, why):
    suite = Suite(tmp_path, [], minutes=60)
    suite.run(Check("one", ["sh", "-c", script], 10 if "sleep" in script else 60), {})
    assert (suite.passed, suite.failed) == (([], ["one"]) if why else (["one"], []))
    assert (tmp_path / "one.log").read_text() == "seen\n"
    printed = capsys.readouterr().out
    assert why in printed
    assert ("seen" in printed) == bool(why)


def test_program_that_is_not_there_fails(tmp_path):
    suite = Suite(tmp_path, [], minutes=60)
    suite.run(Check("gone", [str(tmp_path / "gone")]), {})
    assert suite.failed == ["gone"]


def test_no_time_left_is_a_failure(tmp_path):
    suite = Suite(tmp_path, [], minutes=0)
    suite.run(python("late", "pass"), {})
    assert suite.failed == ["late"]


def test_each_gpu_runs_one_check_at_a_time(tmp_path):
    # Each check waits for a partner on the other GPU, so both must run at once.
    code = ("import os, pathlib, time\n"
            "mine = os.environ['CUDA_VISIBLE_DEVICES']\n"
            f"folder = pathlib.Path({str(tmp_path)!r})\n"
            "(folder / mine).touch()\n"
            "while not (folder / '01'.replace(mine, '')).exists(): time.sleep(.01)\n")
    suite = Suite(tmp_path, ["0", "1"], minutes=60)
    suite.run_beside_each_other([python("a", code), python("b", code)])
    assert sorted(suite.passed) == ["a", "b"]


def test_environment_of_a_check_reaches_it(tmp_path):
    code = "import os; raise SystemExit(os.environ['WANTED'] != 'yes')"
    suite = Suite(tmp_path, [], minutes=60)
    suite.run_beside_each_other([python("a", code, WANTED="yes")])
    assert suite.passed == ["a"]


def test_package_brings_its_libraries(tmp_path):
    package = tmp_path / "package.txz"
    build = BUILD.relative_to(ROOT) if BUILD.is_relative_to(ROOT) else BUILD
    subprocess.run([ROOT / "scripts/gpu_package.sh", build, package, "fqctl"], check=True)
    there = tmp_path / "there"
    there.mkdir()
    subprocess.run(["tar", "xf", package, "-C", there], check=True)
    program = next(there.rglob("bin/fqctl"))
    listed = subprocess.run(["ldd", program], check=True, text=True, capture_output=True).stdout
    loaded = dict(line.split(" => ") for line in listed.splitlines() if " => " in line)
    brought = program.parents[1] / "lib"
    assert (brought / "libgrpc++.so.1.51").is_file()
    for name in (path.name for path in brought.iterdir()):
        assert Path(loaded[f"\t{name}"].split(" (")[0]).resolve().parent == brought
    assert subprocess.run([program, "--version"], env={}, capture_output=True).returncode == 0
    assert next(there.rglob("flashquant/v1/kv_cache_pb2.py")).is_file()

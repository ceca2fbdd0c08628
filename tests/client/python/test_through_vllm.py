"""The arithmetic of `flashquant eval-vllm` and its child process; the whole of it: tests/e2e."""

import queue
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch
from test_codec_set import random_codec_set
from tiny_model import make_model, make_texts

from flashquant.cli import main
from flashquant.codec_set import write_codec_set
from flashquant.evaluate.codecs import NamedCodec
from flashquant.evaluate.through_vllm import (Pair, Side, agreed_ids, bucket_of, greedy_of,
                                              groups_of, harness_greedy, harness_sides, table,
                                              vllm_side)
from flashquant.local_engine import EngineRun
from flashquant.models import load_model
from flashquant.models.base import hidden_states, same_rows
from flashquant.scoring_plan import (Case, Plan, Scored, read_plan, read_results, write_plan,
                                     write_results)
from flashquant.vllm.scoring import predictions

ZERO = NamedCodec("zero", lambda _, k, v: (k * 0, v * 0), 0.0, 0.0)


@pytest.fixture(name="folder", scope="module")
def folder_fixture(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    make_model(path / "model")
    make_texts(path / "test", 1, 2)
    write_codec_set(random_codec_set(layers=2, kv_heads=2), path / "set.fqcs")
    return path


def side(added, same):
    return Side(torch.zeros(511), torch.full((511,), added), torch.arange(511) < same)


def pair(vllm, harness, prefix=1024, greedy=None):
    return Pair(prefix, 10, side(vllm, 511), side(harness, 0), greedy)


def test_bucket_difference_is_vllm_less_harness():
    bucket = bucket_of([pair(0.02, 0.01), pair(0.02, 0.01)], 0, 511)
    assert bucket.perplexity_excess_percent == pytest.approx(2.0201, abs=1e-3)
    assert bucket.harness_excess_percent == pytest.approx(1.0050, abs=1e-3)
    assert bucket.difference_points == pytest.approx(1.0151, abs=1e-3)
    assert bucket.difference_standard_error == pytest.approx(0, abs=1e-4)
    assert (bucket.top1_agreement_percent, bucket.harness_top1_agreement_percent) == (100, 0)


def test_difference_is_paired_by_token():
    noise = torch.randn(2, 511, generator=torch.Generator().manual_seed(1))
    sides = [Side(torch.zeros(511), line, torch.ones(511).bool()) for line in noise]
    bucket = bucket_of([Pair(64, 1, one, one, None) for one in sides], 0, 511)
    assert bucket.standard_error_percent > 1 and bucket.difference_standard_error == 0


def test_groups_by_prefix_then_all_together():
    pairs = {"compact": [pair(0.0, 0.0, 1024, (3, 3)), pair(0.0, 0.0, 2048),
                         pair(0.0, 0.0, 1024, (5, 4))]}
    groups = list(groups_of(pairs))
    assert [(g.prefix_tokens, g.cases, g.stored_bytes) for g in groups] == [
        (1024, 2, 20), (2048, 1, 10), (0, 3, 30)]
    assert (groups[0].greedy.vllm_ids, groups[0].greedy.harness_ids) == (4, 3.5)
    assert (groups[0].greedy.equal_cases, groups[1].greedy) == (1, None)
    assert len(table(groups).splitlines()) == 1 + 2 * len(groups)
    assert greedy_of([]) is None


def test_vllm_side_compares_with_exact_pages():
    exact = Scored("a", "exact", 64, 1, [1.0, 2.0], [7, 8], [1, 2, 3])
    lossy = Scored("a", "compact", 64, 1, [1.5, 2.0], [7, 9], [1, 5, 3])
    found = vllm_side(exact, lossy)
    assert found.added.tolist() == [0.5, 0.0] and found.same.tolist() == [True, False]
    assert agreed_ids(lossy.greedy, exact.greedy) == 1


def greedy_ids(model, ids, count):
    for _ in range(count):
        last = hidden_states(model, torch.tensor(ids))[-1]
        ids = [*ids, int((last @ model.head_weight().T).argmax())]
    return ids[-count:]


def test_harness_without_loss_and_with_all_lost(folder):
    model = load_model(folder / "model", dtype=torch.float32)
    ids = torch.randint(256, (300,), generator=torch.Generator().manual_seed(2)).tolist()
    case = Case("a", ids[:256], ids[256:], 4)
    raw = NamedCodec("raw", same_rows, 16.0, 16.0)
    kept, lost = harness_sides(model, case, [raw, ZERO], raw)
    assert len(kept.added) == 43
    assert kept.added.abs().max() < 0.2 * lost.added.abs().max()  # its sinks are in eight bits
    lossless = greedy_ids(model, ids[:257], 4)
    assert harness_greedy(model, case, lossless, [raw], raw) == [4]
    assert harness_greedy(model, case, [*lossless[:2], 0, 0], [raw], raw) == [2]


def test_load_model_in_another_type(folder):
    model = load_model(folder / "model", dtype=torch.bfloat16)
    assert model.head_weight().dtype == torch.bfloat16
    assert load_model(folder / "model").head_weight().dtype == torch.float32


def test_plan_and_results_travel_as_files(tmp_path):
    plan = Plan("m", "c", "float32", "unix:///x", ["exact"], [Case("a", [1, 2], [3], 4)])
    write_plan(plan, tmp_path / "plan")
    assert read_plan(tmp_path / "plan") == plan
    results = [Scored("a", "exact", 64, 9, [0.5], [3], [])]
    write_results(results, tmp_path / "results")
    assert read_results(tmp_path / "results") == results


def test_predictions_leave_out_what_was_loaded():
    def entry(token, logprob, best):
        found = {token: SimpleNamespace(logprob=logprob, rank=1 if token == best else 5)}
        return {**found, best: SimpleNamespace(logprob=-0.1, rank=1)} if token != best else found

    garbage = {99: SimpleNamespace(logprob=0.0, rank=1)}
    output = SimpleNamespace(prompt_token_ids=[1, 2, 3, 4, 5], prompt_logprobs=[
        None, garbage, garbage, entry(4, -2.0, 6), entry(5, -0.5, 5)])
    assert predictions(output, 2) == ([2.0, 0.5], [6, 5])


LONG_S = 60.0


def run_program(tmp_path, text, limit_s=LONG_S):
    (tmp_path / "program.py").write_text(text)
    lines = []
    with EngineRun([str(tmp_path / "program.py")], tmp_path / "log", lines.append) as run:
        run.wait(limit_s)
    return lines


REPORT = "from flashquant.local_engine import report_progress as say\n"


def test_engine_run_reports_progress_under_its_settings(tmp_path):
    lines = run_program(tmp_path, REPORT + "import os\nprint('noise')\n"
                        "say('threads ' + os.environ['OMP_NUM_THREADS'])\n")
    assert lines == ["threads 1"] and "noise" in (tmp_path / "log").read_text()


def test_engine_run_failure_shows_the_first_error(tmp_path):
    with pytest.raises(ChildProcessError, match=r"failed \(1\):\nValueError: first\nmore"):
        run_program(tmp_path, "import sys\nprint('before', file=sys.stderr)\n"
                    "print('ValueError: first\\nmore', file=sys.stderr)\nsys.exit(1)\n")


def test_engine_run_beyond_its_limit_is_killed_with_its_children(tmp_path):
    program, children = tmp_path / "program.py", queue.SimpleQueue()
    program.write_text(REPORT + "import subprocess, time\n"
                       "say(str(subprocess.Popen(['sleep', '3000']).pid))\ntime.sleep(3000)\n")
    with EngineRun([str(program)], tmp_path / "log", children.put) as run:
        child = children.get(timeout=LONG_S)
        with pytest.raises(ChildProcessError, match="not done in 1 s"):
            run.wait(1)
    deadline_s = time.monotonic() + LONG_S
    while subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True,
                         check=False).stdout.strip() not in (b"", b"Z"):
        assert time.monotonic() < deadline_s, "the child of the program lives"
        time.sleep(0.05)


def run_eval(folder, *extra):
    texts = [str(file) for file in (folder / "test").iterdir()]
    return main(["eval-vllm", "--model", str(folder / "model"), "--codec-set",
                 str(folder / "set.fqcs"), "--text", *texts, *extra])


@pytest.mark.parametrize("extra, text", [
    (["--node", "/none", "--prefixes", "1000"], "1000, expected a multiple of 64"),
    (["--node", "/none", "--prefixes", "4096"], "at least 4608 are needed"),
    (["--node", "/none", "--prefixes", "256"], "No such file or directory: '/none'"),
])
def test_command_refuses_what_does_not_fit(folder, capfd, extra, text):
    assert run_eval(folder, *extra) == 1
    assert text in capfd.readouterr().err


def test_command_without_node_is_refused(folder, capfd, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run_eval(folder) == 1
    assert "--node: flashquantd is not in PATH" in capfd.readouterr().err

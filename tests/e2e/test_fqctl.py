"""fqctl against a real node: every verb, its output and its exit code."""

import json
import signal
import subprocess

import pytest
from flashquant.codec_set import read_codec_set, write_codec_set
from node_process import FQCTL, ROOT, WAIT_SECONDS, fqctl, run_flashquantd
from raw_client import BLOCK_BYTES, Session, chain, content

OK, USAGE, NOT_FOUND, PRECONDITION, UNAVAILABLE, DATA, EXHAUSTED = range(7)
MODEL = ("--model=test/tiny", "--layers=2", "--kv-heads=2", "--head-size=64", "--dtype=f16")
WHERE = ("--namespace=tests/cli", *MODEL)
PREFIX = (*WHERE, "--blocks=4")


def answer(node, *args: object) -> dict | list:
    """The JSON of a verb that must succeed."""
    result = fqctl("-o", "json", *args, endpoint=node.endpoint)
    assert result.returncode == OK, result
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def pages(tmp_path):
    """A file of four blocks."""
    file = tmp_path / "pages"
    file.write_bytes(b"".join(content(key) for key in chain("cli", 4)))
    return file


def test_put_lookup_get_give_the_same_bytes(node, pages, tmp_path):
    put = answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")
    assert (put["blocks"], put["stored"], put["existed"]) == (4, 4, 0)
    assert answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")["existed"] == 4
    found = answer(node, "lookup", *PREFIX)
    assert (found["matched_blocks"], found["blocks_by_profile"]) == (4, {"exact": 4})
    got = answer(node, "get", *PREFIX, f"--file={tmp_path}/out")
    assert got["loaded_blocks"] == 4
    assert (tmp_path / "out").read_bytes() == pages.read_bytes()


def test_universal_is_smaller_and_close(node, pages, tmp_path):
    answer(node, "put", *PREFIX, "--profile=universal", f"--file={pages}")
    assert answer(node, "lookup", *PREFIX)["stored_bytes"] < 4 * BLOCK_BYTES / 3
    answer(node, "get", *PREFIX, f"--file={tmp_path}/out")
    out = (tmp_path / "out").read_bytes()
    assert len(out) == 4 * BLOCK_BYTES and out != pages.read_bytes()


def test_status_and_stats_show_what_happened(node, pages):
    answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")
    status = answer(node, "status")
    assert status["state"].lower().endswith("serving") and status["blocks"] == 4
    assert status["host_used_bytes"] >= 4 * BLOCK_BYTES
    stats = answer(node, "stats", "--prefix=fq_blocks_stored")
    assert stats['fq_blocks_stored_total{profile="exact",result="ok"}'] == 4
    assert all(name.startswith("fq_blocks_stored") for name in stats)


def test_namespace_list_show_purge(node, pages):
    assert answer(node, "namespace", "list") == []
    answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")
    rows = answer(node, "namespace", "list")
    assert [(row["name"], row["blocks"]) for row in rows] == [("tests/cli", 4)]
    shown = answer(node, "namespace", "show", "tests/cli")
    assert shown["descriptor"]["head_size"] == 64 and shown["raw_bytes"] == 4 * BLOCK_BYTES
    refused = fqctl("namespace", "purge", "tests/cli", endpoint=node.endpoint)
    assert refused.returncode == USAGE and "--yes" in refused.stderr
    assert answer(node, "status")["blocks"] == 4
    assert answer(node, "namespace", "purge", "tests/cli", "--yes")["blocks"] == 4
    assert answer(node, "status")["blocks"] == 0


def test_namespace_show_has_what_calibration_wrote(start_node, tmp_path):
    codec_set = read_codec_set(ROOT / "tests/golden/codec_set_d64.fqcs")
    layers, heads = codec_set.layers, codec_set.kv_heads
    errors = [[[0.25, 0.5]] * heads] * layers
    codec_set.expected_error = {"compact": errors, "near-lossless": errors}
    longer = {"profile": "compact", "tokens": 2 * codec_set.calibrated_tokens}
    codec_set.loss_by_length = [codec_set.loss["compact"] | longer]
    write_codec_set(codec_set, tmp_path / "model.fqcs")
    node = start_node(host_bytes="8MiB", codec_set=tmp_path / "model.fqcs")
    opened = fqctl("lookup", "--namespace=tests/coded", "--model=synthetic", f"--layers={layers}",
                   f"--kv-heads={heads}", "--head-size=64", "--dtype=f16", "--blocks=1",
                   f"--codec-set={codec_set.id.hex()}", endpoint=node.endpoint)
    assert opened.returncode == NOT_FOUND, opened
    shown = answer(node, "namespace", "show", "tests/coded")
    assert shown["measured_loss"]["compact"] == codec_set.loss["compact"]
    assert shown["loss_by_length"] == codec_set.loss_by_length
    assert shown["quality"]["near-lossless"] == {"state": "no sample yet", "error_ratio": None,
                                                 "samples": 0, "drift": False}


def test_verify_checks_every_block(node, pages):
    answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")
    checked = answer(node, "verify")
    assert (checked["blocks"], checked["failed"]) == (4, 0)
    assert answer(node, "verify", "--namespace=tests/cli")["blocks"] == 4


def test_descriptor_is_taken_from_the_node(node, pages):
    answer(node, "put", *PREFIX, "--profile=exact", f"--file={pages}")
    assert answer(node, "lookup", "--namespace=tests/cli", "--blocks=4")["matched_blocks"] == 4


def test_bench_counts_and_cleans_up(node):
    sizes = ["--namespace=tests/bench", "--calls=3", "--blocks-per-call=2"]
    by_name = {row["operation"]: row for row in answer(node, "bench", *sizes)}
    assert {name: row["calls"] for name, row in by_name.items()} == {
        "store": 3, "lookup": 3, "load": 3}
    assert by_name["load"]["raw_bytes"] == by_name["store"]["raw_bytes"] > 0
    assert answer(node, "namespace", "show", "tests/bench")["blocks"] == 0
    answer(node, "bench", *sizes, "--keep")
    assert answer(node, "namespace", "show", "tests/bench")["blocks"] == 6


@pytest.mark.parametrize("args, code, parts", [
    (["lookup", *PREFIX], NOT_FOUND, []),
    (["namespace", "show", "tests/none"], NOT_FOUND, ["tests/none"]),
    (["lookup", "--namespace=tests/none", "--blocks=1"], NOT_FOUND, ["tests/none"]),
    (["put", *PREFIX, "--profile=compact", "--file={pages}"], PRECONDITION, ["codec set"]),
    (["put", *PREFIX, "--profile=exact", "--file=/nowhere"], USAGE, ["--file", "/nowhere"]),
    (["put", *PREFIX, "--profile=best", "--file={pages}"], USAGE, ["best"]),
    (["put", *WHERE, "--blocks=3", "--profile=exact", "--file={pages}"], USAGE,
     [str(4 * BLOCK_BYTES), str(3 * BLOCK_BYTES)]),
    (["lookup", *PREFIX, "--layer-range", "1", "9"], USAGE, ["layer-range", "9", "2"]),
    (["lookup", "--blocks=1"], USAGE, ["--namespace"]),
    (["lookup", *WHERE], USAGE, ["--blocks"]),
    (["lookup", "--namespace=a b", *MODEL, "--blocks=1"], USAGE, ["namespace_name"]),
    (["no-such-verb"], USAGE, []),
    ([], USAGE, []),
    (["status", "--surplus"], USAGE, ["surplus"]),
    (["--deadline-ms=0", "status"], USAGE, ["deadline-ms"]),
    (["-o", "xml", "status"], USAGE, ["xml"]),
])
def test_exit_code_and_reason(args, code, parts, node, pages):
    result = fqctl(*(a.format(pages=pages) for a in args), endpoint=node.endpoint)
    assert result.returncode == code, result
    assert result.stdout == "" or code == NOT_FOUND
    for part in parts:
        assert part in result.stderr, result.stderr


def test_full_node_is_exit_code_6(start_node, tmp_path):
    node = start_node(host_bytes="4MiB")
    with node.channel() as channel, Session(channel) as session:
        held = []
        for turn in range(40):
            keys = chain(f"{turn}", 4)
            session.store(keys)
            found = session.lookup(keys)
            if found.matched_blocks:
                held.append(found.lease_id)
        file = tmp_path / "pages"
        file.write_bytes(b"".join(content(key) for key in chain("cli", 4)))
        result = fqctl("put", *PREFIX, "--profile=exact", f"--file={file}", endpoint=node.endpoint)
        assert held and result.returncode == EXHAUSTED, result


@pytest.mark.parametrize("endpoint", ["unix:///nowhere/fq.sock", "127.0.0.1:1"])
def test_no_node_is_exit_code_4_in_time(endpoint):
    result = fqctl("--deadline-ms=500", "status", endpoint=endpoint)
    assert result.returncode == UNAVAILABLE and result.stdout == "", result


def test_frozen_node_is_exit_code_4_in_time(node):
    node.freeze()
    result = fqctl("--deadline-ms=500", "status", endpoint=node.endpoint)
    node.signal(signal.SIGCONT)
    assert result.returncode == UNAVAILABLE, result


def test_endpoint_comes_from_the_environment_too(node):
    result = subprocess.run([FQCTL, "status"], capture_output=True, text=True,
                            env={"FQCTL_ENDPOINT": node.endpoint, "LC_ALL": "C",
                                 "FQCTL_DEADLINE_MS": f"{WAIT_SECONDS}000"})
    assert result.returncode == OK and "serving" in result.stdout.lower(), result


def test_closed_standard_output_does_not_hang(node):
    command = f"{FQCTL} --deadline-ms=60000 --endpoint={node.endpoint} stats | head -c 1"
    assert subprocess.run(command, shell=True, capture_output=True, timeout=WAIT_SECONDS).stdout


def test_help_names_the_exit_codes_and_the_rpcs():
    text = fqctl("--help").stdout
    assert "2 not found" in text and "6 resource exhausted" in text
    assert "Admin.Verify" in fqctl("verify", "--help").stdout
    assert run_flashquantd("--help").returncode == OK

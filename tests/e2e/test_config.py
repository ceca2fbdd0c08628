"""Where settings come from, and starts that are refused."""

import os
import stat

import grpc
import pytest
from node_process import FLASHQUANTD, Node, free_port, run_flashquantd
from raw_client import Session, chain

REFUSED = 2


def printed(*args: str, env: dict[str, str] | None = None) -> dict[str, str]:
    """--print-config as a dictionary."""
    result = run_flashquantd(*args, "--print-config", env=env)
    assert result.returncode == 0, result.stderr
    pairs = [line.split("=", 1) for line in result.stdout.splitlines() if "=" in line]
    return {name.strip(): value.strip().strip('"') for name, value in pairs}


def test_flag_beats_environment_beats_file_beats_default(tmp_path):
    file = tmp_path / "node.ini"
    file.write_text("lease-ms=1001\nqueue-depth=11\nworkers=1\n")
    environment = {"FQ_LEASE_MS": "1002", "FQ_QUEUE_DEPTH": "12", "FQ_CONFIG": str(file)}
    values = printed("--lease-ms=1003", env=environment)
    assert values["lease-ms"] == "1003"
    assert values["queue-depth"] == "12"
    assert values["workers"] == "1"
    assert values["max-sessions"] == "256"


def test_printed_config_is_a_config_file(tmp_path):
    first = run_flashquantd("--host-bytes=3GiB", "--codec-set=/a b.fqcs", "--codec-set=/c.fqcs",
                            "--print-config")
    file = tmp_path / "node.ini"
    file.write_text(first.stdout)
    again = run_flashquantd(f"--config={file}", "--print-config")
    assert again.stdout == first.stdout and first.stdout


@pytest.mark.parametrize("args, parts", [
    (["--host-bytes=-1"], ["host-bytes", "-1"]),
    (["--host-bytes=1e400"], ["host-bytes", "1e400"]),
    (["--host-bytes=0"], ["host-bytes", "0"]),
    (["--workers=9999999999999"], ["workers", "9999999999999"]),
    (["--lease-ms=0"], ["lease-ms", "0"]),
    (["--default-deadline-ms=50000"], ["default-deadline-ms", "50000", "30000"]),
    (["--socket=relative.sock"], ["socket", "relative.sock"]),
    (["--socket=/" + "x" * 120], ["socket", "121"]),
    (["--socket-mode=999"], ["socket-mode", "999"]),
    (["--socket=", "--listen="], ["--socket", "--listen"]),
    (["--listen=0.0.0.0:7600"], ["listen", "0.0.0.0:7600", "tls"]),
    (["--listen=[::]:7600"], ["listen", "[::]:7600", "tls"]),
    (["--listen=127.0.0.1"], ["listen", "127.0.0.1"]),
    (["--listen=127.0.0.1:99999"], ["listen", "99999"]),
    (["--tls-cert=/a.pem"], ["tls-cert", "tls-key"]),
    (["--tls-client-ca=/a.pem"], ["tls-client-ca", "tls-cert"]),
    (["--log-level=loud"], ["log-level", "loud"]),
    (["--tenant="], ["tenant"]),
    (["--no-such-option=1"], ["no-such-option"]),
    (["surplus"], ["surplus"]),
    (["--config=/nowhere.ini"], ["/nowhere.ini"]),
])
def test_start_is_refused_with_option_and_value(args, parts):
    result = run_flashquantd(*args)
    assert result.returncode == REFUSED, result
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.mark.parametrize("text, part", [
    ("no-such-option=1\n", "no-such-option"), ("lease-ms=1\nlease-ms=2\n", "lease-ms"),
    ("[section]\nlease-ms=100\n", "section"), ("lease-ms=many\n", "many"), ("\0\xff\0\n", "")])
def test_bad_config_file_is_refused(text, part, tmp_path):
    file = tmp_path / "node.ini"
    file.write_text(text, encoding="latin-1")
    result = run_flashquantd(f"--config={file}")
    assert result.returncode == REFUSED and part in result.stderr, result


def test_huge_config_file_is_refused(tmp_path):
    file = tmp_path / "node.ini"
    file.write_bytes(b"#" * (2 << 20))
    result = run_flashquantd(f"--config={file}")
    assert result.returncode == REFUSED and "2097152" in result.stderr


@pytest.mark.parametrize("contents", [b"", b"FQCS", b"FQCS" + b"\xff" * 200, b"\0" * 4096])
def test_broken_codec_set_is_refused(contents, tmp_path):
    file = tmp_path / "broken.fqcs"
    file.write_bytes(contents)
    result = run_flashquantd(f"--socket={tmp_path}/s", "--metrics-listen=", f"--codec-set={file}")
    assert result.returncode != 0 and "broken.fqcs" in result.stderr, result


def test_second_node_on_the_same_socket_is_refused_and_the_first_goes_on(node):
    second = run_flashquantd(f"--socket={node.socket}", "--metrics-listen=")
    assert second.returncode != 0 and str(node.socket) in second.stderr
    with node.channel() as channel, Session(channel) as session:
        session.store(chain("a", 2))
        assert session.fetch(chain("a", 2)) == 2


def test_stale_socket_is_taken_over(node):
    node.kill()
    assert node.socket.exists()
    node.start()


def test_socket_mode_is_as_set(start_node):
    node = start_node(socket_mode="0660")
    for suffix in ("", ".seg", ".call"):
        path = node.socket.with_name(node.socket.name + suffix)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660, path


def test_loopback_needs_no_certificate(start_node):
    port = free_port()
    start_node(listen=f"127.0.0.1:{port}")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, Session(channel) as session:
        # Not on the same host, for all it knows.
        assert session.opened.segment_socket == session.opened.call_socket == ""
        session.store(chain("a", 1))
        assert session.fetch(chain("a", 1)) == 1


def test_log_holds_no_key_and_no_session(node):
    keys = chain("a", 2)
    with node.channel() as channel, Session(channel) as session:
        session.store(keys)
        session.fetch(keys)
        session_id = session.id
    log = node.log
    assert log
    for secret in (session_id, *keys):
        assert secret.hex() not in log


def test_version_and_help_go_to_standard_output():
    version = run_flashquantd("--version")
    assert version.returncode == 0 and version.stdout.startswith("flashquantd 0.")
    text = run_flashquantd("--help").stdout
    assert "FQ_HOST_BYTES" in text and "--tls-client-ca" in text


def test_program_is_where_node_process_looks():
    assert FLASHQUANTD.exists() and Node().endpoint.startswith("unix:///")

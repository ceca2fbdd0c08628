"""What a node shows of itself: /metrics, and the names the runbook relies on."""

import re
import urllib.error
import urllib.request

import pytest
from node_process import ROOT, WAIT_SECONDS, free_port
from raw_client import BLOCK_BYTES, Session, chain

RUNBOOK = ROOT / "deploy/README.md"


@pytest.fixture
def page(start_node):
    """Fetches the text of /metrics of a node that has done a little."""
    port = free_port()
    node = start_node(metrics_listen=f"127.0.0.1:{port}", host_bytes="64MiB")

    def fetch(path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WAIT_SECONDS) as reply:
            return reply.read().decode()

    fetch.node = node
    return fetch


def series(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_counters_follow_what_happens(page):
    keys = chain("a", 8)
    with page.node.channel() as channel, Session(channel) as session:
        session.store(keys)
        session.store(keys)
        session.fetch(keys)
        session.lookup(chain("b", 3))
        now = series(page())
    assert now['fq_blocks_stored_total{profile="exact",result="ok"}'] == 8
    assert now['fq_blocks_stored_total{profile="exact",result="exists"}'] == 8
    assert now['fq_blocks_loaded_total{profile="exact"}'] == 8
    assert now['fq_lookup_blocks_total{result="miss"}'] == 3
    assert now['fq_raw_bytes_total{direction="load"}'] == 8 * BLOCK_BYTES
    assert now["fq_sessions"] == 1 and now["fq_store_blocks"] == 8


def test_every_series_is_there_from_the_start(page):
    before = page()
    with page.node.channel() as channel, Session(channel) as session:
        session.store(chain("a", 2))
        session.fetch(chain("a", 2))
        after = page()
    assert series(before).keys() == series(after).keys()
    assert not any(value < 0 for value in series(after).values())


def test_no_label_holds_what_a_caller_sent(page):
    with page.node.channel() as channel, Session(channel) as session:
        session.store(chain("a", 2))
        text = page()
    for part in ("tests/tiny", "test/tiny", "raw_client", chain("a", 1)[0].hex()):
        assert part not in text


def test_runbook_names_only_metrics_that_exist(page):
    names = {name.split("{")[0] for name in series(page())}
    told = set(re.findall(r"`(fq_[a-z_]+)", RUNBOOK.read_text()))
    assert told and told <= names, told - names
    labels = set(re.findall(r"`(fq_[a-z_]+\{[^}]+\})", RUNBOOK.read_text()))
    for label in labels:
        name, pair = label.split("{")
        assert any(
            s.startswith(name + "{") and pair.rstrip("}") in s for s in series(page())), label


def test_other_paths_are_not_found(page):
    with pytest.raises(urllib.error.HTTPError) as error:
        page("/../etc/passwd")
    assert error.value.code in (400, 404)

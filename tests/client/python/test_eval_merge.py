"""Reports of processes that shared a comparison, as one."""

import copy

import pytest

from flashquant.evaluate.merge import merge_reports

HEADER = {"commit": "c", "machine": {"processor": "p"}, "model": "m", "seconds": 1.5,
          "documents": [{"name": "a"}], "codec_sets": [{"label": "set", "id": "1"}]}


def entry(names, **what):
    return {**what, "raw_perplexity": 9.0, "codecs": [{"name": name} for name in names]}


def report(**parts):
    return {**copy.deepcopy(HEADER), **parts}


def names_of(entries):
    return [[score["name"] for score in e["codecs"]] for e in entries]


def test_merge_same_entry_joined_others_behind():
    first = report(running=[entry(["a", "b"], tokens=2048)], copy=[entry(["a"])])
    second = report(running=[entry(["c"], tokens=2048), entry(["a"], tokens=4096)],
                    prefix=[entry(["a"], prefix=1024, windows=8)])
    second["codec_sets"].append({"label": "other", "id": "2"})
    merged = merge_reports([first, second])
    assert names_of(merged["running"]) == [["a", "b", "c"], ["a"]]
    assert names_of(merged["copy"]) == [["a"]] and names_of(merged["prefix"]) == [["a"]]
    assert [s["label"] for s in merged["codec_sets"]] == ["set", "other"]
    assert merged["seconds"] == 3.0 and len(first["running"][0]["codecs"]) == 2


def test_merge_one_report_same_figures():
    one = report(running=[entry(["a"], tokens=2048)])
    assert merge_reports([one]) == one


def test_merge_names_what_another_source_measured():
    first = report(running=[entry(["a"], tokens=2048)])
    second = report(running=[entry(["c", "b"], tokens=2048)], copy=[entry(["a"])]) | {"commit": "d"}
    assert merge_reports([first, second])["also"] == [
        {"commit": "d", "machine": {"processor": "p"},
         "measured": {"running, tokens 2048": ["b", "c"], "copy": ["a"]}}]
    assert "also" not in merge_reports([first])


@pytest.mark.parametrize("change, message", [
    ({"model": "n"}, "report 1: model is 'n', that of the first is 'm'"),
    ({"codec_sets": [{"label": "set", "id": "2"}]}, "codec_sets: found"),
    ({"running": [entry(["a"], tokens=2048)]}, "running: a found in two reports"),
])
def test_merge_other_things_refused(change, message):
    first = report(running=[entry(["a"], tokens=2048)])
    with pytest.raises(ValueError, match=message):
        merge_reports([first, {**report(), **change}])

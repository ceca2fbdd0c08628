"""What the documents name is there: options, verbs, defaults, files, anchors."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import subprocess

import pytest

from flashquant.cli import main
from flashquant.vllm.options import Options

ROOT = pathlib.Path(__file__).parents[2]
BINARIES = pathlib.Path(os.environ.get("FQ_BUILD", ROOT / "build/release")) / "bin"
GUIDES = ("README.md", "deploy/README.md", "server/README.md", "client/python/README.md")
OTHER_TOOLS = {"--kv-transfer-config", "--block-size", "--gpu-memory-utilization"}  # vLLM's
OPTION = r"--[a-z][a-z0-9-]*[a-z0-9]"
UNITS = {"": 1, " s": 1000, " KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30}


def help_of(program: str, *verb: str) -> str:
    return subprocess.run([BINARIES / program, *verb, "--help"], text=True, check=True,
                          stdout=subprocess.PIPE).stdout


def help_of_python(*verb: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        main([*verb, "--help"])
    return text.getvalue()


def verbs_in(text: str, heading: str) -> list[str]:
    return re.findall(r"^ {2,4}([a-z][a-z-]+)(?:\s|$)", text.partition(heading)[2], re.MULTILINE)


@pytest.fixture(scope="module")
def fqctl() -> dict[str, str]:
    """Help by verb; "" is that of fqctl itself."""
    pages = {"": help_of("fqctl")}
    for verb in verbs_in(pages[""], "Subcommands:"):
        pages[verb] = help_of("fqctl", verb)
        for under in verbs_in(pages[verb], "Subcommands:"):
            pages[f"{verb} {under}"] = help_of("fqctl", verb, under)
    return pages


@pytest.fixture(scope="module")
def python_client() -> dict[str, str]:
    pages = {"": help_of_python()}
    for verb in verbs_in(pages[""], "COMMAND\n"):
        pages[verb] = help_of_python(verb)
    return pages


@pytest.fixture(scope="module")
def node() -> str:
    return help_of("flashquantd")


def guide(name: str) -> str:
    return (ROOT / name).read_text()


def markdown() -> list[pathlib.Path]:
    names = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, check=True, text=True,
                           stdout=subprocess.PIPE).stdout.split()
    return [ROOT / name for name in names]


def test_every_option_that_a_guide_names_exists(node, fqctl, python_client):
    pages = "\n".join([node, *fqctl.values(), *python_client.values()])
    known = set(re.findall(OPTION, pages)) | OTHER_TOOLS
    assert {"--host-bytes", "--floor", "--sequences"} <= known
    for name in GUIDES:
        named = {o for o in re.findall(rf"(?<![\w-]){OPTION}(?!-\*|[\w-])", guide(name))}
        assert named <= known, (name, named - known)


def test_every_option_of_the_node_is_in_a_guide(node):
    text = "".join(guide(name) for name in GUIDES)
    options = set(re.findall(rf"^  ({OPTION}) (?:TEXT|UINT|FLOAT)", node, re.MULTILINE))
    assert len(options) > 40
    assert not {o for o in options if not re.search(rf"(?<![\w-]){o}(?![\w-])", text)}


def test_every_verb_that_a_guide_names_exists(fqctl, python_client):
    for program, pages in (("fqctl", fqctl), ("flashquant", python_client)):
        firsts = {verb.split()[0] for verb in pages if verb}
        for name in GUIDES:
            named = set(re.findall(rf"^{program} ([a-z][a-z-]+)|`{program} ([a-z][a-z-]+)",
                                   guide(name), re.MULTILINE))
            named = {"".join(groups) for groups in named}
            assert named <= firsts, (name, program, named - firsts)
    shown = set(re.findall(r"fqctl namespace ([a-z]+)", "".join(guide(n) for n in GUIDES)))
    assert shown and {f"namespace {verb}" for verb in shown} <= fqctl.keys()


def test_defaults_in_the_guides_are_those_of_the_node(node):
    defaults = dict(re.findall(rf"^  ({OPTION}) (?:UINT|FLOAT)[:A-Z]*=([\d.]+)", node,
                               re.MULTILINE))
    assert len(defaults) > 20
    checked = 0
    for name in GUIDES:
        told = re.findall(rf"`({OPTION})`(?: \(|, )([\d,.]*\d)( s| KiB| MiB| GiB|)\b", guide(name))
        for option, number, unit in told:
            value = float(number.replace(",", "")) * UNITS[unit]
            assert value == float(defaults.get(option, "nan")), (name, option, number + unit)
            checked += 1
    assert checked > 4


def test_options_of_the_connector_are_those_of_its_table():
    table = re.search(r"^\| option \|.*?\n\n", guide("client/python/README.md"),
                      re.MULTILINE | re.DOTALL)[0]
    named = {name for row in table.splitlines()[2:] if row
             for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {field.name for field in dataclasses.fields(Options)}


def anchors(path: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", markdown(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_test_that_a_guide_names_exists():
    there = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, text=True,
                           stdout=subprocess.PIPE).stdout.split()
    files = "\n" + "\n".join(there) + "\n"
    checked = 0
    for name in GUIDES:
        for file in re.findall(r"`([\w/]*(?:test_\w+\.py|_(?:test|fuzz)\.cc))`", guide(name)):
            assert f"/{file}\n" in files or f"\n{file}\n" in files, (name, file)
            checked += 1
    assert checked > 8

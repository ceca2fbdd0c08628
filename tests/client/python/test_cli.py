"""The command `flashquant` itself; its verbs have tests of their own."""

import re
import tomllib
from pathlib import Path

import pytest

from flashquant.cli import main

ROOT = Path(__file__).parents[3]


def test_version_is_that_of_package_and_programs(capsys):
    package = tomllib.loads((ROOT / "client/python/pyproject.toml").read_text())["project"]
    programs = re.search(r"FlashQuant VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"flashquant {package['version']}\n"
    assert package["version"] == programs[1]


def test_no_verb_is_a_wrong_argument(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err

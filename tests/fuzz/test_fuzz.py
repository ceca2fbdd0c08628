"""A few seconds of every fuzz target from its seeds; `make fuzz` runs them longer."""

import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
SECONDS = 8


@pytest.mark.parametrize("target", ["codec_set_fuzz", "slab_fuzz", "request_fuzz"])
def test_fuzz(target):
    result = subprocess.run([HERE / "run.sh", str(SECONDS), target], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout

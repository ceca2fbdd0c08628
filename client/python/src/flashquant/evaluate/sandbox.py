"""Runs programs that a model wrote, in a process with limits.

Limits: seconds of processor and of wall time, memory, size of files, and no network where the
kernel lets an ordinary process have a network namespace of its own. This guards against accidents;
it is no wall against malice.
"""

import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache

SECONDS = 5
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
LIMITS = ("prlimit", f"--cpu={SECONDS}", f"--as={MEMORY_BYTES}", f"--fsize={FILE_BYTES}",
          "--core=0")
ISOLATION = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@lru_cache(maxsize=None)
def isolation() -> tuple[str, ...]:
    """The command that takes the network away, empty where that is not allowed."""
    if shutil.which(ISOLATION[0]) is None:
        return ()
    probe = subprocess.run([*ISOLATION, "true"], capture_output=True, check=False)
    return ISOLATION if probe.returncode == 0 else ()


def passes(program: str, seconds: float = SECONDS) -> bool:
    """Whether `program` (Python) ends by itself, without an error, within the limits."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = subprocess.run(
                [*isolation(), *LIMITS, sys.executable, "-I", "-c", program], cwd=folder, env={},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return False
    return found.returncode == 0

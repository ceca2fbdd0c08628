#!/usr/bin/env python3
"""A whole node under compute-sanitizer, driven by a worker: every profile stored and loaded.

    tests/gpu/check_sanitized.py [--build build/release] [--tool memcheck] [--exclude KERNEL]

Exit code 1 when the tool finds anything, or a page is wrong. Under racecheck a session did not open
within 80 s on an H200, because making the candidate lists of a codec set took longer: give
--exclude MakeCoderLists there.
"""

import argparse
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from check_pinned import round_trip
from paged_worker import PagedWorker, node_binary
from shapes import SHAPES, write_made_up

from flashquant.wire import Profile

START_S = 120.0
END_S = 60.0
BLOCKS = 6
FOUND = 86  # exit code of the tool when it found something


def node_pid(path: Path) -> int:
    """Who listens on a socket, once somebody does. TimeoutError."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                size = struct.calcsize("3i")
                peer_ids = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
                return struct.unpack("3i", peer_ids)[0]
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"nobody listens on {path} after {START_S:.0f} s")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=Path("build/release"))
    parser.add_argument("--tool", default="memcheck")
    parser.add_argument("--exclude", help="kernels with this in their name are not checked")
    arguments = parser.parse_args()
    shape, wrong = SHAPES["tiny"], 0
    with tempfile.TemporaryDirectory() as folder:
        path, codec_set = write_made_up(shape, Path(folder))
        endpoint = Path(folder) / "fq.sock"
        exclude = (["--kernel-name-exclude", f"kernel_substring={arguments.exclude}"]
                   if arguments.exclude else [])
        tool = subprocess.Popen([
            "compute-sanitizer", "--tool", arguments.tool, "--error-exitcode", str(FOUND),
            *exclude, str(node_binary(arguments.build.absolute())), f"--socket={endpoint}",
            "--metrics-listen=", "--host-bytes=64MiB", f"--codec-set={path}", "--device=0",
            "--device-bytes=64MiB"])
        try:
            pid = node_pid(endpoint)
            worker = PagedWorker(f"unix://{endpoint}", shape, codec_set, "cuda", 2 * BLOCKS)
            for profile in Profile:
                result = round_trip(worker, profile, BLOCKS)
                wrong += result["wrong_pages"] + result["not_loaded"]
                print(result, flush=True)
            transport = worker.core.access.transport().name
            worker.close()
            os.kill(pid, signal.SIGTERM)
            code = tool.wait(END_S)
        finally:
            tool.kill()
    print(f"{arguments.tool}: exit code {code}, transport {transport}, {wrong} wrong pages")
    return int(bool(code or wrong) or transport != "device")


if __name__ == "__main__":
    sys.exit(main())

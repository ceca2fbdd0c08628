"""Plants every fault that tests/tidy.py knows in a small tree and expects exactly that report."""

import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tidy

ROOT = pathlib.Path(__file__).parent.parent
HEADER = "// What it is for.\n#pragma once\n"


def body(lines: int) -> str:
    """A C++ function of that many lines."""
    return "int Long(int x) {\n" + "  x += 1;\n" * (lines - 3) + "  return x;\n}\n"


def python_body(lines: int) -> str:
    """A Python function of that many lines."""
    return "def long(x):\n" + "    x += 1\n" * (lines - 2) + "    return x\n"


SOUND = {
    "kernels/params.h": HEADER,
    "kernels/base/check.h": HEADER + "// a word like throw or abort() in a comment is fine\n",
    "kernels/slab.h": HEADER + '#include "kernels/params.h"\n#include "absl/status/status.h"\n',
    "kernels/slab.cc": '#include "kernels/slab.h"\n\n#include "kernels/base/check.h"\n' + body(70),
    "tests/kernels/slab_test.cc": '#include "server/store/store.h"\n',
    "server/store/store.h": HEADER + 'const char* kText = "std::abort() throw";\n',
    "server/main.cc": 'int main() { getenv("A"); return 0; }\n',
    "server/server.h": HEADER + '#include "server/rpc/service.h"\n',
    "server/rpc/service.h": (
        HEADER + '#include <grpcpp/grpcpp.h>\n#include "flashquant/v1/a.pb.h"\n'),
    "tests/tidy_exempt.txt": "# comment\nserver/main.cc: started by tests/e2e\n",
    "client/python/src/flashquant/client.py": "import grpc\nfrom flashquant import keys\n",
    "client/python/src/flashquant/keys.py": python_body(70),
    "scripts/a.sh": "# TO" + "DO(#12) is written down\n",
}

# What is planted -> file, text, what the report must say.
FAULTS = {
    "kernel includes store": ("kernels/a.h", HEADER + '#include "server/store/store.h"\n',
                              "kernels may not include server/store"),
    "codec includes memory": ("kernels/codec/a.h", HEADER + '#include "kernels/memory/m.h"\n',
                              "kernels/codec may not include kernels/memory"),
    "store includes kernels": ("server/store/a.h", HEADER + '#include "kernels/slab.h"\n',
                               "server/store may not include kernels"),
    "page path includes proto": ("server/a.h", HEADER + '#include "flashquant/v1/a.pb.h"\n',
                                 "server may not include proto"),
    "rpc includes store": ("server/rpc/a.h", HEADER + '#include "server/store/store.h"\n',
                           "server/rpc may not include server/store"),
    "server includes rpc": ("server/a.h", HEADER + '#include "server/rpc/service.h"\n',
                            "server may not include server/rpc"),
    "cli includes kernels": ("client/cli/a.h", HEADER + '#include "kernels/slab.h"\n',
                             "client/cli may not include kernels"),
    "client includes server": ("client/cpp/a.h", HEADER + '#include "server/options.h"\n',
                               "client/cpp may not include server"),
    "grpc in kernels": ("kernels/a.h", HEADER + "#include <grpcpp/grpcpp.h>\n",
                        "grpcpp/grpcpp.h is for"),
    "cuda in server": ("server/a.h", HEADER + "#include <cuda_runtime.h>\n",
                       "cuda_runtime.h is for"),
    "own header late": ("kernels/slab.cc",
                        '#include "kernels/params.h"\n#include "kernels/slab.h"\n',
                        "include kernels/slab.h first"),
    "long file": ("server/a.h", HEADER + "int x;\n" * 599, "601 lines; the limit is 600"),
    "long line": ("server/a.h", HEADER + "int " + "x" * 100 + ";\n",
                  "105 columns; the limit is 100"),
    "long function": ("server/a.h", HEADER + body(71), "function of 71 lines; the limit is 70"),
    "long method": ("server/a.h",
                    HEADER + "class A {\n  void F() const {\n" + "    G();\n" * 69 + "  }\n};\n",
                    "function of 71 lines; the limit is 70"),
    "long kernel": ("kernels/cuda/a.cuh", HEADER + body(151),
                    "function of 151 lines; the limit is 150"),
    "long python function": ("demo/a.py", python_body(71), "function of 71 lines; the limit is 70"),
    "getenv": ("server/store/a.h", HEADER + 'auto x = getenv("A");\n',
               "settings are read in main.cc"),
    "abort": ("kernels/a.h", HEADER + "void F() { std::abort(); }\n", "return a Status"),
    "throw": ("client/cpp/a.h", HEADER + "void F() { throw 1; }\n", "no exceptions"),
    "grpc status": ("server/rpc/a.h", HEADER + "auto F() { return grpc::Status(a, b); }\n",
                    "built in server/rpc/status.*"),
    "device sync": ("kernels/cuda/a.h", HEADER + "void F() { cudaDeviceSynchronize(); }\n",
                    "synchronise the stream"),
    "unbounded copy": ("server/a.h", HEADER + "void F() { strcpy(a, b); }\n", "no bounds"),
    "random": ("kernels/a.h", HEADER + "int F() { return rand(); }\n", "printed seed"),
    "using namespace": ("server/a.h", HEADER + "using namespace std;\n", "name what you use"),
    "assert": ("server/a.h", HEADER + "void F() { assert(x); }\n", "FQ_CHECK stays on"),
    "fast math": ("kernels/a.h", HEADER + "float F() { return __expf(1); }\n", "IEEE"),
    "no purpose": ("server/a.h", "#pragma once\n", "starts by saying what it is for"),
    "no guard": ("server/a.h", "// What for.\n", "no #pragma once"),
    "python import": ("client/python/src/flashquant/client.py", "from flashquant.vllm import x\n",
                      "flashquant may not import flashquant/vllm"),
    "python submodule": ("client/python/src/flashquant/client.py",
                         "from flashquant import vllm\n",
                         "flashquant may not import flashquant/vllm"),
    "python external": ("client/python/src/flashquant/models/a.py", "import vllm.config\n",
                        "vllm is for flashquant/vllm only"),
    "python relative": ("client/python/src/flashquant/models/a.py", "from .b import x\n",
                        "import from the root"),
    "python environment": ("client/python/src/flashquant/a.py", "import os\nx = os.environ['A']\n",
                           "only a main reads the environment"),
    "python exit": ("client/python/src/flashquant/a.py", "import sys\nsys.exit(1)\n",
                    "a library raises"),
    "python bare except": ("demo/a.py", "try:\n    x = 1\nexcept:\n    x = 2\n",
                           "name the exception"),
    "python pickle": ("client/python/src/flashquant/a.py", "import pickle\n", "never unpickle"),
    "python syntax": ("demo/a.py", "def f(:\n", "does not parse"),
    "fix" "me": ("server/a.h", HEADER + "// FIX" "ME later\n", "fix it or file an issue"),
    "to" "do": ("README.md", "TO" "DO: write\n", "with its issue"),
    "machine path": ("README.md", "see /wo" "rk/main\n", "a path of one machine"),
    "registry": ("README.md", "from py" "pi.org\n", "registry host"),
    "vague name": ("server/string_util.h", HEADER, "util says nothing"),
    "vague folder": ("server/common/a.h", HEADER, "common says nothing"),
    "no test": ("server/a.cc", "int x;\n", "no tests/server/a_test.cc"),
    "exemption without reason": ("tests/tidy_exempt.txt", "server/main.cc:\n", "no reason given"),
    "stale exemption": ("tests/tidy_exempt.txt", "server/main.cc: e2e\nserver/gone.cc: why\n",
                        "server/gone.cc: no such file"),
    "needless exemption": ("tests/tidy_exempt.txt", "server/main.cc: e2e\nkernels/slab.cc: why\n",
                           "kernels/slab.cc has a test"),
}


def problems_of(root: pathlib.Path, files: dict[str, str]) -> list[str]:
    """What tidy says of a tree of these files."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return tidy.tree_problems(root)


def test_sound_tree_has_no_problems(tmp_path):
    assert problems_of(tmp_path, SOUND) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_the_only_report(fault, tmp_path):
    path, text, reason = FAULTS[fault]
    problems = problems_of(tmp_path, SOUND | {path: text})
    assert len(problems) == 1, problems
    assert path in problems[0] and reason in problems[0]


def test_ignored_and_binary_files_are_not_read(tmp_path):
    (tmp_path / "golden.bin").write_bytes(b"\xff\xfe FIX" b"ME")
    assert problems_of(tmp_path, SOUND | {".gitignore": "/build/\n", "build/util.h": "x"}) == []


def test_functions_are_found_among_braces_that_are_none():
    text = ("namespace fq {\nstruct A {\n  int x = 1;\n};\nA::A() : x_{1}, y_(2) {\n  Go();\n}\n"
            "auto t = [] { return '{'; };\n"
            "void F(const char* s = \"{\") {\n  if (s) {\n  }\n}\n}\n")
    long = [found for found in tidy.cpp_functions(text) if found[1] > 1]
    assert long == [(5, 3), (9, 4)]


def test_this_tree_is_tidy():
    problems = "\n".join(tidy.tree_problems(ROOT))
    assert problems == ""

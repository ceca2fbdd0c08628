#!/usr/bin/env python3
"""Checks the architecture and the rules of the house over all files of the tree.

    tests/tidy.py [ROOT]

Prints one `path:line: reason` per problem and exits 1 when there is any; tests/tidy_test.py plants
every fault. Layout is clang-format's business and bugs are clang-tidy's; here is what those cannot
know.
"""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

Problems = Iterator[tuple[int, str]]

# The architecture: folder -> folders it may include besides itself; the longest match counts.
# None: anything.
INCLUDES = {
    "proto": set(),
    "kernels/base": set(),
    "kernels/codec": {"kernels/base"},
    "kernels/memory": {"kernels/base"},
    "kernels": {"kernels/base", "kernels/codec", "kernels/memory"},
    "kernels/cpu": {"kernels", "kernels/base", "kernels/codec", "kernels/memory"},
    "kernels/cuda": {"kernels", "kernels/base", "kernels/codec", "kernels/memory"},
    "server/store": {"kernels/base", "kernels/memory"},
    "server/device": {"kernels", "kernels/base", "kernels/memory"},
    "server/peers": {"server/store", "kernels/base", "kernels/memory", "proto"},
    "server/connections": {"server", "kernels/base"},
    "server/rpc": {"server", "server/connections", "server/peers", "kernels", "kernels/base",
                   "proto"},
    "server": {"server/store", "server/device", "server/peers", "kernels", "kernels/base",
               "kernels/memory"},
    "client/cpp": {"proto", "kernels", "kernels/base", "kernels/codec"},
    "client/cli": {"client/cpp", "kernels/base"},
    "tests": None,
}
# Files that put the parts together and so see more than their folder.
ASSEMBLY = {
    "server/server.h": {"server/rpc"},
    "server/server.cc": {"server/rpc"},
    "server/node.cc": {"kernels/cuda"},
    "flashquant/cli.py": {"flashquant/calibrate", "flashquant/evaluate"},
}

# The same for the packages of client/python/src.
IMPORTS = {
    "flashquant/v1": set(),
    "flashquant": {"flashquant/v1"},
    "flashquant/vllm": {"flashquant", "flashquant/v1"},
    "flashquant/models": {"flashquant"},
    "flashquant/evaluate": {"flashquant", "flashquant/models"},
    "flashquant/calibrate": {"flashquant", "flashquant/models", "flashquant/evaluate"},
}
# Outside libraries and the only folders of the product that may see them.
EXTERNAL_HEADERS = {
    r"grpc(pp|\+\+)?/|google/protobuf/":
        ("server/rpc", "server/peers", "server/main.cc", "client/cpp"),
    r"cuda|nvrtc|cub/|cutlass/": ("kernels/cuda", "kernels/memory", "kernels/base/host_device.h",
                                    "server/peers/nccl_comm.cc"),
    r"nccl": ("server/peers",),
    r"prometheus/": ("server",),
    r"CLI/": ("server/options.cc", "server/main.cc", "client/cli"),
    r"spdlog/": ("server",),
}
EXTERNAL_MODULES = {
    "vllm": ("flashquant/vllm",),
    "grpc": ("flashquant/call_socket.py", "flashquant/client.py", "flashquant/link.py",
             "flashquant/local_node.py",
             "flashquant/vllm", "flashquant/v1"),
    "transformers": ("flashquant/models", "flashquant/calibrate", "flashquant/evaluate"),
}

PRODUCT = ("kernels/", "server/", "client/")
CPP = (".h", ".cc", ".cu", ".cuh")
CODE = (*CPP, ".py", ".sh", ".proto", ".cmake")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
KERNEL_LINES_MAX = 150  # functions of kernels/cuda
COLUMNS_MAX = {".proto": 120}  # others:
COLUMNS_MAX_DEFAULT = 100

# (pattern, reason, path prefixes it holds for, paths where it is allowed)
BANNED_CPP = [
    (r"\b(secure_)?getenv\s*\(", "settings are read in main.cc and options.cc only",
     PRODUCT, ("server/main.cc", "server/options.cc", "client/cli/main.cc")),
    (r"(?<![.>])\b(_?exit|abort|quick_exit|terminate)\s*\(",
     "return a Status; only main and FQ_CHECK end a process",
     PRODUCT, ("server/main.cc", "client/cli/main.cc", "kernels/base/check.")),
    (r"\bthrow\b", "no exceptions: return a Status", PRODUCT, ()),
    (r"\bgrpc::Status\s*[({]", "grpc::Status is built in server/rpc/status.* only",
     PRODUCT, ("server/rpc/status.",)),
    (r"\bcudaDeviceSynchronize\s*\(", "synchronise the stream you own", PRODUCT, ()),
    (r"\b(strcpy|strcat|sprintf|vsprintf|gets|strtok)\s*\(",
     "no bounds: use absl::StrCat or spans", PRODUCT, ()),
    (r"\b(rand|srand)\s*\(", "use a random engine with a printed seed", (*PRODUCT, "tests/"), ()),
    (r"\busing\s+namespace\s+(?!fq\b)", "name what you use", (*PRODUCT, "tests/"), ()),
    (r"(?<!static_)\bassert\s*\(", "FQ_CHECK stays on in release; assert does not", PRODUCT, ()),
    (r"-ffast-math|--use_fast_math|__fdividef|\b__expf",
     "codec arithmetic is IEEE (FORMAT.md)", ("kernels/",), ()),
]
BANNED_PYTHON = [
    (r"^\s*except\s*:", "name the exception", ("",), ()),
    (r"\bos\.(environ|getenv)\b", "settings are arguments; only a main reads the environment",
     ("client/python/",), ("__main__.py", "cli.py")),
    (r"\b(os\._exit|sys\.exit|exit)\s*\(", "a library raises; only a main ends the process",
     ("client/python/",), ("__main__.py", "cli.py")),
    (r"\bpickle\b", "never unpickle bytes from elsewhere", ("client/",), ()),
]
# Written in pieces, so that this file passes its own check.
BANNED_ANYWHERE = [
    (r"\bFIX" + r"ME\b|\bX" + r"XX\b", "fix it or file an issue"),
    (r"\bTO" + r"DO\b(?!\(#\d+\))", "write it with its issue: (#12) after the word"),
    (r"(?<![\w.])/(work|root)" + r"/|/tmp" + r"/w\b", "a path of one machine"),
    (r"pypi\." + r"org|python" + r"hosted\.org|deb\.debian\." + r"org|registry\.npmjs|cra"
     + r"tes\.io", "a package registry host: clients know their own"),
]
BANNED_NAMES = {"utils", "util", "common", "helper", "helpers", "misc", "manager", "impl"}
EXEMPTIONS = "tests/tidy_exempt.txt"


def folder_of(path: str, table: dict) -> str | None:
    """The longest folder of `table` that holds `path`."""
    return max((f for f in table if path.startswith(f + "/")), key=len, default=None)


def blank_comments_and_strings(text: str) -> str:
    """C++ text with comments, strings and character literals blanked; lines and columns stay."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^(\s]*)\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'", re.DOTALL)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


NO_FUNCTION = re.compile(r"\s*(template\s*<[^{]*>\s*)?(inline\s+)?"
                         r"(namespace|class|struct|enum|union|extern)\b")


def cpp_functions(text: str) -> Iterator[tuple[int, int]]:
    """(first line, lines) of every function, by matching braces; lambdas are part of theirs."""
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m[0]),
                  blank_comments_and_strings(text), flags=re.MULTILINE)
    depth_at_start = None
    depth = 0
    head_begin = 0
    for match in re.finditer(r"[{};]", code):
        at = match.start()
        if match[0] == "{":
            head = code[head_begin:at]
            scope = NO_FUNCTION.match(head) and not head.rstrip().endswith(")")
            if depth_at_start is None and "(" in head and not scope:
                depth_at_start = depth
                start = head_begin + len(head) - len(head.lstrip())
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth_at_start is not None and depth <= depth_at_start:
                first = code.count("\n", 0, start) + 1
                yield first, code.count("\n", 0, at) + 2 - first
                depth_at_start = None
        if depth_at_start is None or depth <= depth_at_start:
            head_begin = at + 1


def check_includes(path: str, text: str) -> Problems:
    """Include table, external headers, own header first."""
    here = folder_of(path, INCLUDES)
    allowed = INCLUDES.get(here) if here else None
    includes = [(n, m[1]) for n, line in enumerate(text.splitlines(), 1)
                if (m := re.match(r'\s*#\s*include\s*["<]([^">]+)[">]', line))]
    for number, name in includes:
        target = "proto/" + name if name.startswith("flashquant/v") else name
        there = folder_of(target, INCLUDES)
        seen = (allowed or set()) | {here} | ASSEMBLY.get(path, set())
        if allowed is not None and there and there not in seen:
            yield number, f"{here} may not include {there}"
        for pattern, folders in EXTERNAL_HEADERS.items():
            outside = path.startswith(PRODUCT) and not path.startswith(folders)
            if outside and re.match(pattern, name):
                yield number, f"{name} is for {', '.join(folders)} only"
    own = path.rsplit(".", 1)[0] + ".h"
    names = [name for _, name in includes]
    if path.endswith((".cc", ".cu")) and own in names and names[0] != own:
        yield includes[0][0], f"include {own} first"


def check_cpp(path: str, text: str) -> Problems:
    """Everything that holds for C++ and CUDA alone."""
    yield from check_includes(path, text)
    yield from check_banned(path, blank_comments_and_strings(text), BANNED_CPP)
    limit = KERNEL_LINES_MAX if path.startswith("kernels/cuda/") else FUNCTION_LINES_MAX
    for first, lines in cpp_functions(text):
        if lines > limit:
            yield first, f"function of {lines} lines; the limit is {limit}"
    if path.endswith((".h", ".cuh")):
        if not text.startswith("//"):
            yield 1, "a header starts by saying what it is for"
        if "#pragma once" not in text and not path.endswith("-inl.h"):  # Highway's guard toggles
            yield 1, "no #pragma once"


def check_imports(path: str, tree: ast.Module) -> Problems:
    """Import table of the Python packages."""
    package = path.removeprefix("client/python/src/")
    here = folder_of(package, IMPORTS)
    if here is None:
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:  # a name may be a module, too
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            there = folder_of(name.replace(".", "/") + "/", IMPORTS)
            seen = IMPORTS[here] | {here} | ASSEMBLY.get(package, set())
            if there and there not in seen:
                yield node.lineno, f"{here} may not import {there}"
            folders = EXTERNAL_MODULES.get(name.split(".")[0])
            if folders and not package.startswith(folders):
                yield node.lineno, f"{name.split('.')[0]} is for {', '.join(folders)} only"
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "import from the root of the package"


def check_python(path: str, text: str) -> Problems:
    """Everything that holds for Python alone."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield error.lineno or 1, f"does not parse: {error.msg}"
        return
    yield from check_imports(path, tree)
    yield from check_banned(path, text, BANNED_PYTHON)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                limit = FUNCTION_LINES_MAX
                yield node.lineno, f"function of {lines} lines; the limit is {limit}"


def check_banned(path: str, text: str, table: list) -> Problems:
    """Calls and words that have a better place or a better way."""
    rules = [(re.compile(pattern), reason) for pattern, reason, prefixes, allowed in table
             if path.startswith(prefixes)
             and not any(path.startswith(a) or path.endswith("/" + a) for a in allowed)]
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, reason in rules:
            if pattern.search(line):
                yield number, reason


def check_any(path: str, text: str) -> Problems:
    """What holds for every text file."""
    suffix = pathlib.PurePath(path).suffix
    lines = text.splitlines()
    if suffix in CODE:
        if len(lines) > FILE_LINES_MAX:
            yield FILE_LINES_MAX + 1, f"{len(lines)} lines; the limit is {FILE_LINES_MAX}"
        limit = COLUMNS_MAX.get(suffix, COLUMNS_MAX_DEFAULT)
        for number, line in enumerate(lines, 1):
            if len(line) > limit and "://" not in line:
                yield number, f"{len(line)} columns; the limit is {limit}"
    for number, line in enumerate(lines, 1):
        for pattern, reason in BANNED_ANYWHERE:
            if re.search(pattern, line):
                yield number, reason


def check_name(path: str) -> Problems:
    """File and folder names that say nothing."""
    for part in pathlib.PurePath(path).parts:
        words = set(re.split(r"[_\-.]", part.lower()))
        if words & BANNED_NAMES:
            vague = ", ".join(sorted(words & BANNED_NAMES))
            yield 1, f"{part}: name it after what it does ({vague} says nothing)"


def check_tests(root: pathlib.Path, paths: list[str]) -> Iterator[tuple[str, int, str]]:
    """Each x.cc of the product has tests/<path>_test.cc, or an exemption with a reason."""
    exempt = {}
    file = root / EXEMPTIONS
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, _, reason = (part.strip() for part in line.partition(":"))
        exempt[path] = number
        if not reason:
            yield EXEMPTIONS, number, f"{path}: no reason given"
        if path not in paths:
            yield EXEMPTIONS, number, f"{path}: no such file"
    for path in paths:
        if path.startswith(PRODUCT) and path.endswith(".cc"):
            test = "tests/" + path.removesuffix(".cc") + "_test.cc"
            if test in paths and path in exempt:
                yield EXEMPTIONS, exempt[path], f"{path} has a test; drop this line"
            elif test not in paths and path not in exempt:
                yield path, 1, f"no {test}, and no line in {EXEMPTIONS}"


def tree_problems(root: pathlib.Path) -> list[str]:
    """All problems of the tree by path; files that git ignores are not looked at."""
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root,
                             check=True, capture_output=True, text=True).stdout
    paths = sorted(p for p in set(listing.splitlines()) if (root / p).is_file())
    problems = []
    for path in paths:
        found = list(check_name(path))
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary: golden pages, codec sets
        found += check_any(path, text)
        if path.endswith(CPP):
            found += check_cpp(path, text)
        elif path.endswith(".py"):
            found += check_python(path, text)
        problems += [f"{path}:{line}: {reason}" for line, reason in sorted(set(found))]
    return problems + [f"{p}:{line}: {reason}" for p, line, reason in check_tests(root, paths)]


def main() -> int:
    """Prints the problems of the tree this file is in, or of the one named."""
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent
    problems = tree_problems(root)
    print("\n".join(problems) if problems else "tidy: no problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

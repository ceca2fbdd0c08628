#!/usr/bin/env python3
"""Checks the machine code of the page kernels against what they may use.

    tests/kernels/cuda/machine_code.py LIBRARY ARCHITECTURE...

LIBRARY is libfq_cuda.a, compiled with -no-compress: the machine code of each file and architecture
is an ELF file within it. Registers are read from .nv.info, instructions are counted in the section
of each kernel: 16 bytes each on every architecture since sm_70, the opcode in the low 12 bits. Exit
code 1 when a limit is broken or a kernel is missing.
"""

import pathlib
import re
import struct
import sys
from dataclasses import dataclass

LOCAL_MEMORY = {0x983: "LDL", 0x387: "STL"}
MATRIX = 0x23C  # HMMA
INSTRUCTION_BYTES = 16
SYMBOL_BYTES = 24
NO_BITS = 8  # type of a section without bytes in the file
ELF_MAGIC, CUDA_MACHINE = b"\x7fELF", 190
SIZED_RECORD, REGISTER_COUNT = 4, 0x2F  # .nv.info


@dataclass
class Limit:
    """Of one kernel at every head size: registers so that enough thread blocks fit an SM,
    instructions so that growth is noticed, matrix instructions so that their loss is."""
    kernels: int  # instances
    registers: int
    instructions: int
    matrix: int  # at least
    local: int = 0  # instructions that touch local memory: spills, or a lost address space


LIMITS = {
    # A pointer on sm_100 and sm_120, once a page.
    "EncodeBasePages": Limit(4, 128, 5200, 40, local=4),
    "SumBasePages": Limit(4, 48, 1200, 0),
    "DecodeBasePages.*ELi0EE": Limit(4, 72, 4900, 0),
    "DecodeBasePages.*ELi1EE": Limit(1, 128, 5600, 32),  # head size 256
    "DecodeBasePages.*ELi2EE": Limit(4, 128, 6400, 48),
    "DecodePageRuns.*ELi1EE": Limit(3, 136, 2900, 32),
    "DecodePageRuns.*ELi2EE": Limit(3, 168, 5400, 32),
    "VerifyPagesOfBase": Limit(1, 48, 900, 0),
    # The candidates of a cell lie in local memory.
    "MakeCoderLists": Limit(1, 64, 3000, 0, local=500),
    "EncodeExactPages": Limit(1, 48, 1200, 0),
    "DecodeExactPages": Limit(1, 48, 1200, 0),
    "EncodeUniversalPages": Limit(4, 128, 10400, 0),
    "DecodeUniversalPages": Limit(4, 128, 6600, 0),
}


@dataclass
class Kernel:
    """What a cubin says about one kernel."""
    name: str
    registers: int
    opcodes: list[int]

    def count(self, opcodes) -> int:
        """Instructions with one of these opcodes."""
        return sum(opcode in opcodes for opcode in self.opcodes)


class Elf:
    """Sections of a cubin by name; `data` starts with it."""

    def __init__(self, data: memoryview) -> None:
        table, = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
        bodies = [bytes(data[offset:offset + length]) if kind != NO_BITS else b""
                  for _, kind, _, _, offset, length in headers]
        self.sections = {text_at(bodies[names_index], header[0]): body
                         for header, body in zip(headers, bodies)}

    def symbol(self, index: int) -> str:
        """Name of a symbol."""
        at, = struct.unpack_from("<I", self.sections[".symtab"], index * SYMBOL_BYTES)
        return text_at(self.sections[".strtab"], at)

    def registers(self) -> dict[str, int]:
        """Of each kernel, from .nv.info: records of format, attribute, length or value."""
        info = self.sections[".nv.info"]
        found = {}
        at = 0
        while at < len(info):
            form, attribute, length = struct.unpack_from("<BBH", info, at)
            if form == SIZED_RECORD and attribute == REGISTER_COUNT:
                index, count = struct.unpack_from("<II", info, at + 4)
                found[self.symbol(index)] = count
            at += 4 + (length if form == SIZED_RECORD else 0)
        return found


def text_at(table: bytes, at: int) -> str:
    """The zero-terminated string at an offset."""
    return table[at:table.index(b"\0", at)].decode()


def cubins(library: bytes, architecture: int):
    """Every ELF file in the library that is machine code of an architecture."""
    at = library.find(ELF_MAGIC)
    while at >= 0:
        machine, = struct.unpack_from("<H", library, at + 18)
        flags, = struct.unpack_from("<I", library, at + 48)
        if machine == CUDA_MACHINE and flags >> 8 & 0xFF == architecture:
            yield Elf(memoryview(library)[at:])
        at = library.find(ELF_MAGIC, at + 1)


def read_kernels(elf: Elf) -> list[Kernel]:
    """Everything that has a .text.NAME section."""
    registers = elf.registers()
    kernels = []
    for section, code in elf.sections.items():
        if section.startswith(".text."):
            name = section.removeprefix(".text.")
            opcodes = [struct.unpack_from("<H", code, at)[0] & 0xFFF
                       for at in range(0, len(code), INSTRUCTION_BYTES)]
            kernels.append(Kernel(name, registers[name], opcodes))
    return kernels


def broken(kernel: Kernel, limit: Limit) -> list[str]:
    """What a kernel uses beyond its limit, in words."""
    local = kernel.count(LOCAL_MEMORY)
    matrix = kernel.count({MATRIX})
    checks = [
        (kernel.registers > limit.registers, f"{kernel.registers} registers, at most "
                                             f"{limit.registers}"),
        (len(kernel.opcodes) > limit.instructions, f"{len(kernel.opcodes)} instructions, at most "
                                                   f"{limit.instructions}"),
        (local > limit.local, f"{local} accesses to local memory, at most {limit.local}"),
        (matrix < limit.matrix, f"{matrix} matrix instructions, at least {limit.matrix}"),
    ]
    return [text for wrong, text in checks if wrong]


def check(library: bytes, architecture: str) -> list[str]:
    """All problems of one architecture; prints a line per kernel."""
    number = int(architecture.rstrip("a"))
    kernels = [kernel for elf in cubins(library, number) for kernel in read_kernels(elf)]
    problems = []
    for pattern, limit in LIMITS.items():
        found = [kernel for kernel in kernels if re.search(pattern, kernel.name)]
        if len(found) != limit.kernels:
            problems.append(f"sm_{architecture} {pattern}: {len(found)} kernels, not "
                            f"{limit.kernels}")
        for kernel in found:
            print(f"sm_{architecture:5}{pattern:28}{kernel.registers:5} registers"
                  f"{len(kernel.opcodes):6} instructions{kernel.count({MATRIX}):5} matrix"
                  f"{kernel.count(LOCAL_MEMORY):4} local")
            problems += [f"sm_{architecture} {kernel.name}: {text}"
                         for text in broken(kernel, limit)]
    return problems


def main() -> int:
    """The exit code."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    library = pathlib.Path(sys.argv[1]).read_bytes()
    problems = [problem for architecture in sys.argv[2:]
                for problem in check(library, architecture)]
    print("\n".join(problems) if problems else "machine code: within its limits")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

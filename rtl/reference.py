"""Reference pages of instruction set and registers, written from their declarations.

``python -m rtl.reference`` rewrites ``docs/isa.md`` and ``docs/registers.md``; a test compares them
with the declarations, so that they are never behind.
"""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from rtl import chunk, isa, registers
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.instruction import HEADER, WORD_BITS, Field, Instruction, Unit
from rtl.isa import (
    BASES,
    INSTRUCTIONS,
    LINES,
    SCALARS,
    VECTORS,
    Source,
    StoreSource,
    VectorOp,
    disassemble,
)
from rtl.pattern import DENSE, HARDWARE_M, NmPattern
from rtl.registers import COUNTERS, REGISTERS, Control, ErrorCode, Interrupt, Status

__all__ = ["isa_page", "main", "member_docs", "registers_page"]

ROOT = Path(__file__).parents[1]

_KINDS = (VectorOp, Source, StoreSource, Control, Interrupt, Status)
_SEE = re.compile(rf"(?<=\b[Ss]ee )({'|'.join(kind.__name__ for kind in _KINDS)})\b")
_FAMILY = re.compile(r"^(base|scalar)(\d+)")
_COUNTER_REGISTERS = {f"{counter.name}_{half}" for counter in COUNTERS for half in ("low", "high")}


def member_docs(kind: type[enum.Enum]) -> dict[str, str]:
    """The string literal after each member of an enumeration, on one line.

    Raises :class:`ValueError` if a member has none.
    """
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    docs, name = {}, None
    for node in body.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs[name] = " ".join(str(node.value.value).split())
            name = None
    if missing := [member.name for member in kind if member.name not in docs]:
        raise ValueError(f"{kind.__name__}: no docstring after {', '.join(missing)}")
    return docs


def isa_page() -> str:
    """Markdown of the instruction set."""
    return _page([
        "# Instruction set",
        _origin("rtl/isa.py"),
        *_prose(isa),
        "## Units",
        f"Every instruction is one word of {WORD_BITS} bits, {WORD_BITS // 8} bytes, little "
        "endian; the fields follow each other from bit 0 up, bits beyond them are zero. An "
        "undefined opcode, a set bit beyond the fields or a value that is not legal stops the "
        "program with an error code ([registers](registers.md)).",
        _table(("unit", "what it does"), _rows(Unit)),
        "Every instruction begins with:",
        _fields(HEADER, 0),
        "The waits are the only order between units: an instruction begins when its unit has begun "
        "all earlier ones of its own and every wait in its header is over. An instruction is "
        "complete when all that it reads has been read and all that it writes can be seen, a "
        "store's words in memory.",
        "As text, an instruction is its mnemonic and the fields that differ from what an encoder "
        "takes by itself, which is 0 or the smallest legal value above it:",
        _example(),
        "## Registers",
        f"The host writes {BASES} base registers and {SCALARS} FP32 scalar registers. The vector "
        f"engine has {VECTORS} vector registers of {LINES} lines; a line is {LANES} FP32 lanes.",
        "## Memory",
        *_prose(chunk),
        f"An index word holds the indices of four packed rows, 4 bits each: lane `q` of packed row "
        f"`i` stands at bit `64 (i mod 4) + 4 q` of index word `i / 4`. In words of {WORD_BYTES} "
        "bytes, a packed chunk is:",
        _chunks(),
        "## Instructions",
        _table(
            ("mnemonic", "opcode", "unit", "bits"),
            ([f"[`{one.mnemonic}`](#{one.mnemonic})", f"`{one.opcode:#04x}`", one.unit.name,
              str(one.width)] for one in INSTRUCTIONS),
        ),
        *(part for one in INSTRUCTIONS for part in _instruction(one)),
        *(part for kind in (VectorOp, Source, StoreSource) for part in _enumeration(kind)),
    ])


def registers_page() -> str:
    """Markdown of registers, counters and error codes."""
    return _page([
        "# Registers",
        _origin("rtl/registers.py"),
        *_prose(registers),
        f"The map is {1 << registers.ADDRESS_BITS} bytes of AXI4-Lite with 32-bit registers. "
        "An offset that the tables leave out is answered with SLVERR. Access: r read only, w write "
        "only, rw both.",
        "## Map",
        _table(("offset", "register", "access", "meaning"), _map()),
        f"This is version `{registers.VERSION:#010x}`.",
        "## Counters",
        "64 bits each, cleared by start; the low half stands at the offset, the high half 4 bytes "
        "further on.",
        _table(
            ("offset", "counter", "counts"),
            ([f"`{registers.counter_offset(counter.name):#05x}`", f"`{counter.name}`",
              _markdown(counter.doc)] for counter in COUNTERS),
        ),
        *_enumeration(ErrorCode),
        *(part for kind in (Control, Interrupt, Status) for part in _enumeration(kind)),
    ])


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the pages; the status is 1 if their folder does not exist."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    folder: Path = parser.parse_args(argv).docs
    if not folder.is_dir():
        print(f"--docs={folder}: no such folder", file=sys.stderr)
        return 1
    (folder / "isa.md").write_text(isa_page())
    (folder / "registers.md").write_text(registers_page())
    return 0


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _origin(source: str) -> str:
    return (f"Written by `python -m rtl.reference` from `{source}`: change the declarations, not "
            "this page.")


def _markdown(text: str) -> str:
    """A docstring's roles and literals as Markdown, fit for a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = _SEE.sub(lambda found: f"[{found[0]}](#{found[0].lower()})", text)
    return text.replace("``", "`").replace("|", r"\|")


def _prose(module: ModuleType) -> list[str]:
    """The paragraphs of a module's docstring after its first line."""
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")[1:]
    return [_markdown(" ".join(paragraph.split())) for paragraph in paragraphs]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(kind: type[enum.Enum]) -> list[list[str]]:
    """Name and meaning of each member."""
    docs = member_docs(kind)
    return [[f"`{member.name}`", _markdown(docs[member.name])] for member in kind]


def _enumeration(kind: type[enum.IntEnum] | type[enum.IntFlag]) -> list[str]:
    """A section with a table of all members; bit numbers for flags."""
    flags = issubclass(kind, enum.IntFlag)
    values = [str(member.bit_length() - 1 if flags else int(member)) for member in kind]
    rows = [[value, *row] for value, row in zip(values, _rows(kind), strict=True)]
    return [
        f"## {kind.__name__}",
        _markdown(inspect.getdoc(kind) or ""),
        _table(("bit" if flags else "value", "name", "meaning"), rows),
    ]


def _fields(fields: Sequence[Field], first: int) -> str:
    """A table of fields, the first of which begins at bit ``first``."""
    rows = []
    for field in fields:
        last = first + field.width - 1
        rows.append([
            f"{last}:{first}" if last > first else str(first), f"`{field.name}`",
            str(field.width), f"{field.low} to {field.top}", _markdown(field.doc),
        ])
        first = last + 1
    return _table(("bits", "field", "width", "legal values", "meaning"), rows)


def _instruction(instruction: Instruction) -> list[str]:
    parts = [
        f"### {instruction.mnemonic}",
        f"Opcode `{instruction.opcode:#04x}`, unit {instruction.unit.name}. "
        + _markdown(instruction.action),
    ]
    if instruction.fields:
        parts.append(_fields(instruction.fields, sum(field.width for field in HEADER)))
    return parts


def _example() -> str:
    word = isa.STORE.encode(base=2, offset=0x40, source=StoreSource.HALF, a=3, lines=16, run=4,
                            pitch=32, after_vector=1)
    return f"```text\n{disassemble(word)}\n{word:#x}\n```"


def _chunks() -> str:
    patterns = [NmPattern(n, m) for m in HARDWARE_M for n in range(1, m // 2 + 1)]
    rows = []
    for pattern in [*patterns, DENSE]:
        form = ChunkFormat(pattern)
        name = "dense" if pattern == DENSE else str(pattern)
        rows.append([name, str(form.rows), str(form.index_words), str(form.words),
                     str(form.bytes), f"{form.words / LANES:.2f}"])
    return _table(("pattern", "packed rows", "index words", "words", "bytes", "of dense"), rows)


def _map() -> list[list[str]]:
    """All registers but the counters; families of equal ones take a line for each half."""
    rows = []
    for register in REGISTERS:
        family = _FAMILY.match(register.name)
        if register.name in _COUNTER_REGISTERS or (family and family[2] != "0"):
            continue
        name, offset, doc = register.name, f"`{register.offset:#05x}`", register.doc
        if family:
            members = [one for one in REGISTERS
                       if one.name.startswith(family[1])
                       and _FAMILY.sub("", one.name) == _FAMILY.sub("", name)]
            step = members[1].offset - register.offset
            name = _FAMILY.sub(r"\1N", name)
            offset = f"`{register.offset:#05x} + {step} N`"
            doc = doc.replace(" 0,", f" N, 0 to {len(members) - 1},")
        rows.append([offset, f"`{name}`", register.access, _markdown(doc)])
    return rows


if __name__ == "__main__":
    sys.exit(main())

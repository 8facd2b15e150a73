"""The reference pages say what the declarations say, and the ones on disk are the newest."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rtl.instruction import HEADER, Instruction
from rtl.isa import INSTRUCTIONS, Source, StoreSource, VectorOp
from rtl.reference import ROOT, isa_page, main, member_docs, registers_page
from rtl.registers import COUNTERS, REGISTERS, Control, ErrorCode, Interrupt, Status

PAGES = {"isa.md": isa_page, "registers.md": registers_page}


class Documented(enum.IntEnum):
    """Two members, one without a word."""

    FIRST = 1
    """What it is,
    in two lines."""
    SECOND = 2


@pytest.mark.parametrize("name", PAGES)
def test_page_on_disk(name: str) -> None:
    """After a change of the declarations: ``python -m rtl.reference``."""
    assert (ROOT / "docs" / name).read_text() == PAGES[name]()


def test_main_writes_both(tmp_path: Path) -> None:
    assert main(["--docs", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: page() for name, page in PAGES.items()}


def test_folder_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--docs", str(tmp_path / "no")]) == 1
    assert capsys.readouterr().err == f"--docs={tmp_path / 'no'}: no such folder\n"


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda one: one.mnemonic)
def test_fields_of_an_instruction(instruction: Instruction) -> None:
    """Its section has all its fields, with bits that follow each other from the header on."""
    section = isa_page().split(f"\n### {instruction.mnemonic}\n")[1].split("\n##")[0]
    assert f"Opcode `{instruction.opcode:#04x}`, unit {instruction.unit.name}." in section
    rows = re.findall(r"^\| (\d+)(?::(\d+))? \| `(\w+)` \| (\d+) \| (-?\d+) to (-?\d+) \|",
                      section, re.M)
    assert [(name, int(width), int(low), int(top)) for _, _, name, width, low, top in rows] == [
        (field.name, field.width, field.low, field.top) for field in instruction.fields]
    bits = [bit for last, first, *_ in rows for bit in range(int(first or last), int(last) + 1)]
    assert bits == list(range(sum(field.width for field in HEADER), instruction.width))


@pytest.mark.parametrize(
    ("page", "kind"),
    [(isa_page, kind) for kind in (VectorOp, Source, StoreSource)]
    + [(registers_page, kind) for kind in (Control, Interrupt, Status, ErrorCode)],
)
def test_members_of_an_enumeration(
    page: Callable[[], str], kind: type[enum.IntEnum | enum.IntFlag]
) -> None:
    """Value or bit number, name, and something said about it."""
    section = page().split(f"\n## {kind.__name__}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", section, re.M)
    flags = issubclass(kind, enum.IntFlag)
    assert [(1 << int(value) if flags else int(value), name) for value, name, _ in rows] == [
        (int(member), member.name) for member in kind]


def test_every_register_and_counter() -> None:
    """Each register has a line, a family of equal ones one between them."""
    page = registers_page()
    lines = dict(re.findall(r"^\| `(0x\w+)(?: \+ \d N)?` \| `(\w+)`", page, re.M))
    for counter in COUNTERS:
        (offset,) = (one.offset for one in REGISTERS if one.name == f"{counter.name}_low")
        assert lines.pop(f"{offset:#05x}") == counter.name
    left = {one.name: one.offset for one in REGISTERS if one.offset < 0x200}
    for name, family, number, end in re.findall(r"((base|scalar)(\d+)(_\w+)?)", " ".join(left)):
        if number != "0":
            del left[name]
        else:
            left[f"{family}N{end}"] = left.pop(name)
    assert lines == {f"{offset:#05x}": name for name, offset in left.items()}


def test_member_without_a_docstring() -> None:
    with pytest.raises(ValueError, match=r"^Documented: no docstring after SECOND$"):
        member_docs(Documented)
    assert member_docs(Source)["IMMEDIATE"].startswith("``immediate``")


def test_nothing_is_left_of_the_other_markup() -> None:
    """Roles and double backquotes belong to docstrings."""
    for page in PAGES.values():
        assert not re.search(r":\w+:`|(?<!`)``(?!`)", page())

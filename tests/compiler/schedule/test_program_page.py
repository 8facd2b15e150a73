"""docs/program.md says what the declaration of the words says."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.schedule import program_page as module
from compiler.schedule.plan_words import WORDS
from compiler.schedule.program_page import PAGE, main, program_page


def test_page_on_disk_is_the_newest() -> None:
    """After a change of the words: ``python -m compiler.schedule.program_page``."""
    assert PAGE.read_text() == program_page()


def test_every_field_of_every_word_is_on_the_page() -> None:
    page = program_page()
    for kind in WORDS:
        assert f"## {kind.name}\n" in page
        assert all(f"`{field.name}`" in page and field.doc in page for field in kind.fields)


def test_main_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", tmp_path / "program.md")
    assert main([]) == 0
    assert (tmp_path / "program.md").read_text() == program_page()

"""The recorder of result blocks: what it fills, what it leaves."""

from pathlib import Path

import pytest

from benchmarks.record import blocks, record

PAGE = """Before.

<!-- echo one -->
old
<!-- end -->

Between.

<!-- printf 'two  \\nlines\\n\\n' -->
<!-- end -->

<!-- echo partial; exit 3 -->
kept
<!-- end -->
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with three blocks, the last of which fails."""
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_every_block_is_filled_and_a_failing_command_leaves_its_own(page: Path) -> None:
    assert record(page, []) == ["echo partial; exit 3"]
    filled = blocks(page.read_text())
    assert list(filled) == list(blocks(PAGE))
    assert list(filled.values()) == [
        "```text\n$ echo one\none\n```\n",
        "```text\n$ printf 'two  \\nlines\\n\\n'\ntwo\nlines\n```\n",
        "kept\n",
    ]
    assert page.read_text().startswith("Before.\n")
    assert "\n\nBetween.\n\n" in page.read_text()


def test_recording_again_changes_nothing(page: Path) -> None:
    record(page, [])
    once = page.read_text()
    record(page, [])
    assert page.read_text() == once


def test_words_choose_the_commands(page: Path) -> None:
    assert record(page, ["one"]) == []
    assert page.read_text() == PAGE.replace("old\n", "```text\n$ echo one\none\n```\n")

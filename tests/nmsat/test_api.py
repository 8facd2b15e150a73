"""The Python API, progress bars and output files."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import nmsat
from benchmarks.progress import Silent
from nmsat import progress
from nmsat.output import Outputs
from rtl.errors import ParameterError


def test_every_public_name_is_there_and_lazy() -> None:
    for name in nmsat.__all__:
        assert getattr(nmsat, name) is not None
    assert set(nmsat.__all__) == set(dir(nmsat))
    program = "import nmsat, sys; nmsat.NmPattern; sys.exit('torch' in sys.modules)"
    root = Path(nmsat.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'nmsat' has no attribute 'sparsifi'$"):
        nmsat.sparsifi  # noqa: B018  # the access is the test


def test_no_bars_in_a_pipe() -> None:
    assert isinstance(progress.terminal_reporter(), Silent)


def test_bars_on_a_terminal_nest_and_vanish() -> None:
    screen = io.StringIO()
    bars = progress._Bars(Console(file=screen, force_terminal=True, width=100))
    with bars.task("outer", 2) as outer:
        outer(1, "half way")
        with bars.task("inner", None) as inner:
            inner(0, "working")
    assert "outer" in screen.getvalue()
    assert "inner" in screen.getvalue()
    assert bars._bars is None


def test_outputs_appear_together(tmp_path: Path) -> None:
    with Outputs() as outputs:
        first = outputs.file("-o", tmp_path / "first.txt")
        second = outputs.file("--json", tmp_path / "second.txt")
        unused = outputs.file("--trace", tmp_path / "unused.fst")
        outputs.text(first, "1")
        outputs.text(second, "2")
        assert {first.suffix, second.suffix, unused.suffix} == {".txt", ".fst"}
        assert not (tmp_path / "first.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.txt", "second.txt"]


def test_failure_removes_files_and_the_folders_made_for_them(tmp_path: Path) -> None:
    def work() -> None:
        with Outputs() as outputs:
            folder = outputs.folder("-o", tmp_path / "new" / "deep")
            outputs.text(outputs.file("-o", folder / "result.txt"), "half")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        work()
    assert not list(tmp_path.iterdir())


def test_folder_that_exists_stays(tmp_path: Path) -> None:
    def work() -> None:
        with Outputs() as outputs:
            assert outputs.folder("-o", tmp_path) == tmp_path
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        work()
    assert tmp_path.is_dir()


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ParameterError, match=r"^-o='.*': must be in a folder that can be written"):
        Outputs().file("-o", tmp_path / "x")

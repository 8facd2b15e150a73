"""The shape of the source tree: which way imports run, how long files get, what tests must do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# design.md section 2: imports run one way only. What each package may import of ours.
_HARDWARE = {"rtl"}
_SIMULATION = {"sim", *_HARDWARE}
ALLOWED = {
    "rtl": _HARDWARE,
    "sim": _SIMULATION,
    "algorithms": {"algorithms", "rtl"},
    "models": {"models", "algorithms"},
    "compiler": {"compiler", "algorithms", *_SIMULATION},
    "benchmarks": {"benchmarks", "models", "compiler", "algorithms", *_SIMULATION},
    "nmsat": {"nmsat", "benchmarks", "models", "compiler", "algorithms", *_SIMULATION},
}
WITHOUT_TORCH = ("rtl", "sim")
"""The hardware side runs where PyTorch is not installed."""

LONGEST_FILE = 500
WIDEST_LINE = 100
_CHECKS = {"raises", "fail", "warns"}
"""Calls into pytest that are assertions in other words."""


def sources(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """Files of the folders, relative to the root."""
    return sorted(
        path.relative_to(ROOT)
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "sim_build" not in path.parts
    )


def imported(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.module or ""


def asserts(path: Path) -> bool:
    """Whether a test file can fail other than by an accident."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Assert):
            return True
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in _CHECKS:
            return True
    return False


def test_every_package_is_known() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        ours = {name.partition(".")[0] for name in imported(path)} & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {sorted(ours - ALLOWED[package])}"


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_hardware_side_does_not_need_torch(package: str) -> None:
    for path in sources(package):
        assert "torch" not in {name.partition(".")[0] for name in imported(path)}, path


def test_files_are_short_and_lines_fit() -> None:
    files = sources(*ALLOWED, "tests", suffixes=(".py", ".cpp", ".h"))
    assert len(files) > 50
    for path in files:
        lines = (ROOT / path).read_text().splitlines()
        assert len(lines) <= LONGEST_FILE, f"{path} has {len(lines)} lines"
        for number, line in enumerate(lines, 1):
            assert len(line) <= WIDEST_LINE, f"{path}:{number} has {len(line)} columns"


def test_every_module_says_what_it_offers() -> None:
    for path in sources(*ALLOWED):
        tree = ast.parse((ROOT / path).read_text())
        if not tree.body or path.name == "__main__.py":
            continue
        assert ast.get_docstring(tree), f"{path} has no docstring"
        names = {target.id for node in tree.body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)}
        assert "__all__" in names, f"{path} has no __all__"


def test_every_test_file_asserts() -> None:
    files = [path for path in sources("tests") if path.name.startswith("test_")]
    assert files
    for path in files:
        assert asserts(path), f"{path} asserts nothing"

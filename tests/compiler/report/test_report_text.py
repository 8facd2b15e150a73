"""Tables for the terminal: complete, and names stay what they are."""

from __future__ import annotations

import io

import pytest
from compiled_examples import BRACKETS, NAMES, compiled
from rich.console import Console
from rich.table import Table

from compiler.report.result import CompileResult
from compiler.report.text import host_table, layer_table, totals_table


@pytest.fixture(scope="module")
def result() -> CompileResult:
    """The compiled step."""
    return compiled().result


def lines(table: Table) -> list[str]:
    """As printed in a wide terminal."""
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def test_every_gemm_is_a_line_in_order_of_execution(result: CompileResult) -> None:
    printed = [line for line in lines(layer_table(result)) if line.startswith("│")]
    assert len(printed) == len(result.layers)
    for line, layer in zip(printed, result.layers, strict=True):
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[:2] == [layer.name, layer.stage]
        assert cells[8] == f"{layer.cycles:,}"
    assert any(BRACKETS in line for line in printed)
    assert {layer.name for layer in result.layers} == {*NAMES, "attention"}


def test_a_limit_keeps_the_longest_and_says_so(result: CompileResult) -> None:
    table = layer_table(result, limit=3)
    assert table.row_count == 3
    text = lines(table)
    longest = max(result.layers, key=lambda layer: layer.cycles)
    assert f"{longest.cycles:,}" in text[4]
    assert "the 3 GEMMs with the most cycles of 12" in text[-1]
    assert layer_table(result, limit=12).caption is None


def test_totals_stand_side_by_side(result: CompileResult) -> None:
    totals = result.totals
    text = lines(totals_table(result))
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:3]] for line in text
            if len(cells := line.strip("│").split("│")) == 3}
    assert rows["cycles"] == [f"{totals.dense_cycles:,}", f"{totals.cycles:,}"]
    assert rows["speed-up"] == ["1.00x", f"{totals.speedup:.2f}x"]
    assert rows["utilisation"] == [f"{totals.dense_utilisation:.1%}", f"{totals.utilisation:.1%}"]
    assert rows["computing"] == [
        f"{totals.dense_attribution['ideal'] / totals.dense_cycles:.1%}",
        f"{totals.attribution['ideal'] / totals.cycles:.1%}"]
    assert float(rows["effective GFLOP/s"][0]) < float(rows["effective GFLOP/s"][1])
    assert any("without the time of 3 operators" in line for line in text)


def test_operators_of_the_host_are_summed_and_marked(result: CompileResult) -> None:
    table = host_table(result)
    assert table.row_count == 3
    text = lines(table)
    assert sum("aten.softmax" in line for line in text) == 2
    assert [line for line in text if "not known" in line and "aten.mystery" in line]

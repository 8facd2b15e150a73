"""The HTML report: complete, escaped, self-contained, and with the numbers of the JSON."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest
from compiled_examples import BRACKETS, HOST, NAMES, ODD, compiled

from compiler.pipeline import Compiled
from compiler.report.html import html_report
from compiler.report.outputs import render

VOID = {"meta", "input", "br", "link", "img"}
SIZES = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "viewbox"}


class Page(HTMLParser):
    """Text, tables, data and attributes of a page; its tags must balance."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.totals: dict[str, float] = {}
        self.cells: dict[str, list[str]] = {}
        self.title = ""
        self._ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag == "data":
            self.totals[values["data-total"]] = float(values["value"])
        if tag == "section":
            self._ids.append(values["id"])
        if tag == "td":
            self.cells.setdefault(self._ids[-1], []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["head", "title"]:
            self.title += data
        if "td" in self.open:
            self.cells[self._ids[-1]][-1] += data


@pytest.fixture(scope="module")
def example() -> Compiled:
    """The compiled step."""
    return compiled()


@pytest.fixture(scope="module")
def html(example: Compiled) -> str:
    """Its report."""
    return html_report(example)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    """The same, parsed."""
    return Page(html)


def test_every_gemm_is_in_the_table_under_its_own_name(page: Page, example: Compiled) -> None:
    cells = page.cells["layers"]
    columns = 17
    rows = [cells[start:start + columns] for start in range(0, len(cells), columns)]
    assert [(row[1], row[2]) for row in rows] == [
        (layer.name, layer.stage) for layer in example.result.layers]
    for row, layer in zip(rows, example.result.layers, strict=True):
        assert int(row[10].replace(",", "")) == layer.cycles
        assert int(row[11].replace(",", "")) == layer.dense_cycles
    assert {row[1] for row in rows} == {*NAMES, "attention"}


def test_what_comes_from_the_model_is_escaped(html: str, page: Page) -> None:
    assert ODD not in html and HOST not in html and "<i>" not in html
    assert "a&lt;b&gt;&amp;&#34;c" in html and BRACKETS in html
    assert page.tags.count("script") == 1
    assert page.title.startswith("odd <i>net</i> on small")
    assert any(name == "style" for name in page.tags)
    assert "first <linear> layer" in page.cells["dense"]


def test_nothing_is_loaded(html: str, page: Page) -> None:
    assert not re.search(r"(?:https?:)?//[a-z]", html.replace("</script>", ""))
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    targets = [value for _, name, value in page.attributes if name in {"src", "href", "action"}]
    assert targets and all(target.startswith("#") for target in targets)
    assert "url(" not in html and "@import" not in html
    policy = [value for _, name, value in page.attributes
              if name == "content" and "default-src 'none'" in value]
    assert len(policy) == 1


def test_links_inside_the_page_have_ends(page: Page) -> None:
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= anchors
    assert len(anchors) == sum(name == "id" for _, name, _ in page.attributes)


def test_numbers_of_the_pictures_are_finite(page: Page) -> None:
    numbers = [float(number) for tag, name, value in page.attributes
               if tag in {"svg", "rect", "line", "circle", "text"}
               and (name in SIZES or name == "transform")
               for number in re.findall(r"-?[\w.]+", re.sub(r"translate|rotate|%", " ", value))]
    assert len(numbers) > 200
    assert all(math.isfinite(number) for number in numbers)
    widths = [float(width) for _, name, value in page.attributes if name == "style"
              for width in re.findall(r"width:(.*)%", value)]
    assert widths and all(0 <= width <= 100 for width in widths)


def test_bars_of_the_timeline_are_inside_it(page: Page) -> None:
    places = [float(value[:-1]) for tag, name, value in page.attributes
              if tag == "rect" and name == "x"]
    widths = [float(value[:-1]) for tag, name, value in page.attributes
              if tag == "rect" and name == "width"][-len(places):]
    assert places and min(places) >= 0 and min(widths) > 0
    assert all(place <= 100 for place in places)


def test_a_dot_in_the_roofline_for_every_gemm(page: Page, example: Compiled) -> None:
    assert page.tags.count("circle") == len(example.result.layers)


def test_totals_are_those_of_the_json(example: Compiled) -> None:
    files = render(example)
    assert set(files) >= {"report.html", "trace.json", "compile.json"}
    totals = json.loads(files["compile.json"])["totals"]
    shown = Page(str(files["report.html"])).totals
    assert set(shown) == {"speedup", "cycles", "dense_cycles", "seconds", "utilisation",
                          "dense_utilisation", "effective_gflops", "dram_bytes", "host_bytes"}
    assert all(value == totals[name] for name, value in shown.items())
    assert json.loads(files["trace.json"])["traceEvents"]


def test_shares_of_the_causes_add_up(page: Page) -> None:
    cells = page.cells["cycles"]
    shares = [float(cell[:-1]) for cell in cells if cell.endswith("%")][:14]
    assert sum(shares[::2]) == pytest.approx(100, abs=0.4)
    assert sum(shares[1::2]) == pytest.approx(100, abs=0.4)


def test_fallbacks_are_marked_and_unknown_costs_named(html: str, page: Page) -> None:
    host = page.cells["host"]
    assert host[host.index("aten.mystery") + 5] == "fallback, not known"
    assert host[host.index("aten.softmax") + 5] == "known"
    assert "Cost unknown" in html and "Not included" in html


def test_a_step_without_work_of_the_host() -> None:
    text = html_report(compiled(host=False))
    Page(text)
    assert "Not included" not in text
    assert "None: the array and its vector engine run everything." in text


def test_the_same_step_gives_the_same_files(example: Compiled) -> None:
    assert render(example) == render(compiled())

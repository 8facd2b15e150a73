"""The grader: tables of answers, laws that hold for any text, SymPy as a second opinion, and text
that means harm."""

from __future__ import annotations

import string
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from models.math.expressions import Call, Number, Symbol, Undefined, exact_value, value_at
from models.math.grader import RULES, boxed, extract_answer, grade
from models.math.scalars import CONSTANTS, GREEK

SAME = [
    # numbers
    ("18", "18", "string"), ("18.0", "18", "number"), ("018", "18", "number"),
    ("1,000", "1000", "number"), ("1,234,567", "1234567", "number"),
    ("10{,}000", "10,000", "number"),
    (r"10,\!000", "10000", "number"), ("$70,000", "70000", "number"),
    (r"\$18.90", "18.9", "number"),
    ("£5", "5", "number"), ("-5", "- 5", "number"), ("+5", "5", "number"),
    ("\u22125", "-5", "number"),
    (".5", "0.5", "number"), ("5.", "5", "number"), ("12.00", "12", "number"),
    ("$x$", "x", "symbolic"),
    ("1.5e3", "1500", "number"), (r"1.5\times 10^3", "1500", "number"), ("2E-3", "0.002", "number"),
    ("1.5*10**3", "1500", "number"), (r"6.02 \cdot 10^{23}", "6.02e23", "number"),
    (r"\frac{3}{4}", "0.75", "number"), (r"\dfrac34", "3/4", "number"),
    (r"\tfrac{3}4", "3/4", "number"),
    (r"-\frac{3}{8}", r"\frac{-3}{8}", "number"), (r"\frac{6}{8}", "3/4", "number"),
    ("½", "1/2", "number"),
    (r"1\frac12", "1.5", "number"), ("1 1/2", "3/2", "number"),
    (r"-1\frac{1}{2}", "-1.5", "number"),
    ("2^{10}", "1024", "number"), ("5!", "120", "symbolic"), (r"\binom{5}{2}", "10", "symbolic"),
    ("|-3|", "3", "symbolic"), (r"\lfloor 2.7\rfloor", "2", "symbolic"),
    ("2 + 2 = 4", "4", "number"),
    (r"0.\overline{3}", "1/3", "number"), (r"-1.2\overline{36}", r"-\frac{68}{55}", "number"),
    (r"11,\! 111,\! 100", "11111100", "number"), (r"1\,000\,000", "1000000", "number"),
    ("100 000", "100,000", "number"), ("1 234 567.5", "1,234,567.5", "number"),
    # decimals within the tolerance
    ("0.3333", "1/3", "decimal tolerance"), ("3.14159", r"\pi", "decimal tolerance"),
    ("1.41421", r"\sqrt{2}", "decimal tolerance"), ("17.999999", "18", "decimal tolerance"),
    ("0.3333x", r"\frac{x}{3}", "decimal tolerance"),
    # units, signs of money, degrees and per cent
    (r"5 \text{ cm}", "5", "number"), ("5cm", "5 centimeters", "number"),
    ("18 eggs", "18", "number"),
    (r"5\text{ cm}^2", "5 square centimeters", "number"), (r"30 \mbox{ inches}", "30 in", "number"),
    ("60 miles/hour", "60 miles per hour", "number"), (r"90^\circ", "90", "number"),
    (r"90^{\circ}", "90 degrees", "number"), (r"50\%", "50", "number"),
    ("50 percent", "50%", "number"),
    ("1011_2", "1011_{2}", "number"), ("1011_2", "1011", "number"),
    # roots, constants, functions
    (r"2\sqrt{3}", r"\sqrt{12}", "symbolic"), (r"\frac{\sqrt{2}}{2}", r"1/\sqrt2", "symbolic"),
    (r"\sqrt[3]{8}", "2", "symbolic"),
    ("√12", r"2\sqrt3", "symbolic"), ("sqrt(3)/2", r"\frac{\sqrt3}{2}", "symbolic"),
    (r"\sin 30^\circ", "1/2", "symbolic"), (r"\sin^2 x + \cos^2 x", "1", "symbolic"),
    (r"\sin^{-1}(1/2)", r"\pi/6", "symbolic"),
    (r"\cot x", r"\frac{\cos x}{\sin x}", "symbolic"), (r"\log_2 8", "3", "symbolic"),
    (r"\ln e^2", "2", "symbolic"), (r"e^{i\pi}", "-1", "symbolic"),
    ("pi/2", r"\frac{\pi}{2}", "symbolic"),
    (r"\frac\pi2", r"\pi/2", "symbolic"), ("π", r"\pi", "symbolic"), (r"\infty", "oo", "symbolic"),
    (r"(1+i)^2", "2i", "symbolic"), (r"\sqrt{-1}", "i", "symbolic"),
    (r"\sqrt{x^2}", "|x|", "symbolic"), ("n^{1/3}", r"\sqrt[3]{n}", "symbolic"),
    # formulas
    ("(x+1)^2", "x^2+2x+1", "symbolic"), ("2*x**2", "2x^2", "symbolic"), ("xy", "yx", "symbolic"),
    (r"\frac{1}{2}x", "x/2", "symbolic"), (r"\frac{x^2-1}{x-1}", "x+1", "symbolic"),
    (r"a_1+a_{1}", "2a_1", "symbolic"), (r"\theta^2", "θ²", "symbolic"),
    ("2^{x+1}", r"2\cdot2^x", "symbolic"),
    (r"\left(\frac{1}{x}\right)", "x^{-1}", "symbolic"),
    (r"\mathbf{v}+\mathbf{v}", r"2\mathbf{v}", "symbolic"),
    # equations and inequalities
    ("x=5", "5", "number"), ("f(x) = x^2", "x^2", "symbolic"), ("y=2x+3", "2x-y+3=0", "equation"),
    ("x+y=2", "2x+2y=4", "equation"), ("x > 3", "3 < x", "tuple"), ("x>3", r"(3,\infty)", "tuple"),
    (r"1\le x<4", "[1,4)", "tuple"), (r"x\in[1,2]", "[1, 2]", "tuple"), ("x<y", "y>x", "equation"),
    (r"x \neq 3", r"x\ne 3", "equation"),
    # several answers
    ("1,2", "2, 1", "list"), ("2 and 3", "3, 2", "list"), (r"2 \text{ or } 3", "2,3", "list"),
    (r"3\pm2", "1,5", "list"), (r"x=\pm 3", "3,-3", "list"),
    (r"1\pm\sqrt2", r"1+\sqrt2, 1-\sqrt2", "list"),
    ("100,200,300", "300, 200, 100", "list"), (r"\{1,2\}", r"\{2,1\}", "set"),
    (r"\{1,2\}", "2,1", "set"), ("{1, 2}", "2,1", "set"),
    (r"\emptyset", r"\{\}", "set"), ("(1,2)", "( 1, 2 )", "tuple"),
    (r"\left(\frac12, 3\right)", "(0.5,3)", "tuple"), ("[0,1)", "[0.0, 1)", "tuple"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", "set"), ("3:2", "3 : 2", "tuple"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
     r"\begin{bmatrix} 1 & 2 \\ 3 & 4.0 \end{bmatrix}", "matrix"),
    ("60 km/h", "60", "number"), ("60 km/h", "60 km per hour", "number"),
    ("60 mph", "60 miles per hour", "number"), ("9.8 m/s^2", "9.8", "number"),
    ("9.8 m/s²", "9.8 meters per second squared", "number"), ("5 g/ml", "5", "number"),
    ("20°C", "20", "number"), ("68°F", "68", "number"), ("68°F", "68 degrees", "number"),
    (r"68^\circ F", "68 degrees Fahrenheit", "number"),
    ("$2 million", "2000000", "number"), ("1.5 billion dollars", "1500000000", "number"),
    ("2 thirds", "2/3", "number"), ("2 squared", "4", "number"),
    # words
    ("Yes", "yes", "text"), ("No", "no", "text"), ("Tom", "tom", "text"), ("dog", "Dog", "text"),
    ("Tom, Ann", "ann, tom", "list"), ("ab", "ba", "symbolic"), ("AB=CD", "CD=AB", "equation"),
    (r"\text{Evelyn}", "evelyn", "text"), (r"\text{(A)}", "A", "text"),
    ("Monday.", "Monday", "text"),
    (r"\boxed{5}", "5", "number"),
]

DIFFERENT = [
    ("0.001", "0.009"), ("1/3", "0.3"), ("1", "2"), ("100", "100.02"), ("1,000", "1,001"),
    ("70000", "7000"),
    ("18", "-18"), ("0", "0.00001"), ("", "0"), ("0", " "), ("10 am", "10 pm"), ("5 cm", "5 m"),
    ("50%", "0.5"),
    ("5 mm", "5"[::-1] + "0"), ("1011_2", "1011_3"), ("even", "neve"), ("x", "X"), ("x^2", "2x"),
    (r"\sqrt{x^2}", "x"), (r"\sqrt{2}", r"\sqrt{3}"), (r"\sqrt2", "2"), ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2]"), ("(1,2)", "1,2"), ("1,2", "1,2,3"), ("1,1,2", "1,2,2"),
    (r"\{1\}", r"\{2\}"),
    ("y=2x", "y=3x"), ("x=1,y=2", "x=2,y=1"), ("x<3", "x>3"), (r"x\ne3", "x=3"),
    ("1 234", "1 2 34"), ("x<3", "x\\le3"), ("3:2", "2:3"),
    ("1234", "1235"), (r"\pi", "3.2"), (r"\frac12", r"\frac21"), ("None", "0"), ("True", "False"),
    (r"\text{Evelyn}", "Briana"), (r"1\frac12", "1/2"), ("2 1", "21"), ("1/0", "2/0"),
    (r"\infty", r"-\infty"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("x+1", "x+1.01"),
    (r"\log x", r"\log y"), ("i", "1"), ("3", "|3| + 1"), ("9**9**9", "9**9**9 + 1"),
    (r"\emptyset", "0"),
    # either sign, far from zero too
    ("|x-3|", "3-x"), ("|x-20|", "20-x"), (r"\sqrt{a^2b^2}", "ab"), ("|ab|", "-ab"),
    # numbers of whole value
    ("25000", "25001.0"), ("100000", "1.00001e5"),
    # words of few letters
    ("BAC", "ABC"), ("IV", "VI"), ("no", "on"), ("dog", "god"), ("Tom, Ann", "Tom, Nan"),
    # words that belong to the number
    ("2 million", "2"), ("5 thousand", "5"), ("1.5 billion", "1.5"), ("3 quarters", "3"),
    ("2 thirds", "2"), ("2 squared", "2"), ("20°C", "20°F"), ("60 km/h", "60 miles/h"),
    ("5 m/s", "5 m/s^2"), ("x/s", "x"),
]


@pytest.mark.parametrize(("one", "other", "rule"), SAME)
def test_equal_answers_and_the_rule_that_says_so(one: str, other: str, rule: str) -> None:
    assert grade(one, other) == (True, rule)
    assert grade(other, one) == (True, rule)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_answers(one: str, other: str) -> None:
    assert grade(one, other) == (False, "different")
    assert grade(other, one) == (False, "different")


@pytest.mark.parametrize("name", [
    *(letter for letter in string.ascii_letters if letter not in CONSTANTS),
    *(f"\\{name} " for name in sorted(GREEK))])
def test_variables_have_both_signs(name: str) -> None:
    for one, other in (("|{}|", "{}"), ("|{}|", "-{}"), (r"\sqrt{{{}^2}}", "{}"),
                       (r"\frac{{|{0}|}}{{{0}}}", "1"), ("|{}-30|", "30-{}")):
        assert not grade(one.format(name), other.format(name)).equal, one
    assert grade(rf"\sqrt{{{name}^2}}", f"|{name}|").equal


def test_tolerance_is_relative_and_an_option() -> None:
    assert grade("100.9", "100", tolerance=0.01).equal
    assert not grade("0.009", "0.008", tolerance=0.01).equal
    assert not grade("101", "100", tolerance=0.5).equal
    assert not grade("17.999999", "18", tolerance=0).equal


PIECES = (
    "0", "1", "2", "10", "3.5", "1,000", "x", "y", "n", "e", "i", "+", "-", "*", "/", "^", "^2",
    "_2", "=", "<",
    r"\le", "(", ")", "[", "]", "{", "}", r"\{", r"\}", ",", ";", ":", "|", "!", "%", "$", " ",
    r"\pi", r"\infty",
    r"\sqrt", r"\sqrt[3]{", r"\frac", r"\frac{", "}{", r"\binom", r"\pm", r"\cup", r"\in", r"\sin",
    r"\log_",
    r"\left(", r"\right)", r"\text{ cm}", r"\text{", "cm", "and", "apples", r"^\circ", r"\lfloor",
    r"\rfloor",
    r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", "sqrt", "\x1e", "²", "\u222a", "°")
LATEX = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
ANY = st.text(max_size=30) | LATEX


@given(ANY, ANY)
@settings(max_examples=600)
def test_grading_is_total_and_symmetric(one: str, other: str) -> None:
    started = time.monotonic()
    there, back = grade(one, other), grade(other, one)
    assert there == back and there.rule in RULES and there.equal == (there.rule != "different")
    assert time.monotonic() - started < 10, (one, other)


@given(ANY, st.sampled_from(["{}", " {} ", "${}$", "{}."]))
@settings(max_examples=300)
def test_any_text_equals_itself_and_so_does_what_is_read(text: str, frame: str) -> None:
    assert grade(text, text) == (True, "string")
    # A text that is read equals itself in another frame too, also where it has no value.
    if grade(f" {text}", text).rule not in ("different", "text"):
        assert grade(frame.format(text), text).equal


@given(ANY)
@settings(max_examples=300)
def test_extraction_is_total(text: str) -> None:
    found = extract_answer(text)
    assert found is None or (isinstance(found, str) and found)


x, y = sympy.symbols("x y")
LEAVES = st.sampled_from([x, y, sympy.pi, sympy.sqrt(2)]) | st.integers(-9, 9).map(sympy.Integer)
FORMULAS = st.recursive(LEAVES, lambda inner: st.one_of(
    st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
    st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
    st.tuples(inner, st.integers(1, 3)).map(lambda pair: pair[0] ** pair[1]),
    inner.map(lambda each: each / (x**2 + 1))), max_leaves=6)


@given(FORMULAS, FORMULAS)
@settings(max_examples=50)
def test_sympy_agrees(one: sympy.Expr, other: sympy.Expr) -> None:
    written = [str(one), sympy.latex(one), sympy.latex(sympy.expand(one)), str(sympy.factor(one))]
    for text in written[1:]:
        assert grade(written[0], text).equal, (written[0], text)
    expected = sympy.simplify(one - other) == 0
    assert grade(str(one), sympy.latex(other)).equal == expected


@given(st.fractions(max_denominator=99), st.fractions(max_denominator=99))
@settings(max_examples=100)
def test_rational_numbers_are_compared_exactly(one: Fraction, other: Fraction) -> None:
    written = rf"\frac{{{other.numerator}}}{{{other.denominator}}}"
    assert grade(str(one), written).equal == (one == other)
    assert grade(str(other), written).equal


HOSTILE = [
    "__import__('os').system('touch {file}')", "().__class__.__bases__[0].__subclasses__()",
    "9**9**9**9",
    "2^{2^{2^{2^{2^{2}}}}}", "10!!!!!!", "((99!)!)!", r"\binom{10^9}{5 \cdot 10^8}", "1e999999999",
    "1e9999",
    "9" * 5000, "9" * 999, "{" * 10_000, "(" * 990, "-" * 990, "2^" * 490 + "2", "x!" * 490,
    "|" * 990,
    r"\frac{" * 190, r"\sqrt{" * 140 + "2" + "}" * 20, r"e^{e^{e^{e^{e^{e}}}}}",
    r"\sin(10^{10^{10}})",
    r"\tan(10^{15} i)", "+".join(["x"] * 490), "*".join(["x"] * 490), "x^y" * 300,
    ",".join("1" * 400),
    r"\{" + ",".join(rf"\{{{n},x\}}" for n in range(60)) + r"\}", r"\pm1" * 200, "x_" * 400,
    r"\text{" * 150,
    r"\begin{pmatrix}" * 60, "0^{0^{0}}", r"\log_1 5", r"\log 0", "1/(1-1)", "(1-1)^{-i}",
    r"0 \cdot \infty",
    r"\arcsin(10^{100})", "\\boxed{" * 9000, r"\(" * 9000, "answer is " * 9000,
    "answer is a" + " " * 50_000 + "b",
    "#### a" + " " * 50_000 + "b", "1," * 20_000, "1,111" * 9000, "\ud800", "\x00",
    "the answer is" + "." * 30_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].encode("ascii", "replace"))
def test_hostile_text_is_graded_in_time_and_never_run(text: str, tmp_path: Path) -> None:
    file = tmp_path / "made"
    text = text.replace("{file}", str(file))
    started = time.monotonic()
    assert not grade(text, "1234.5").equal
    assert not grade("x", text).equal
    assert grade(text, text).equal
    grade(f"{text} ", text)
    extract_answer(text)
    assert time.monotonic() - started < 10
    assert not file.exists()


def test_threads_have_a_precision_of_their_own() -> None:
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(value_at, Symbol("x"), 0).result()
    here = value_at(Symbol("x"), 0)
    # Functions of mpmath raise their context's precision while they run.
    assert there.context is not here.context and str(there) == str(here)


@pytest.mark.parametrize(("text", "answer"), [
    (r"The answer is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{a} and \boxed{b{c}}", "b{c}"),
    (r"\boxed{a} and \boxed{b", "a"), (r"\boxed{\{1,2\}}", r"\{1,2\}"), (r"$\boxed 5$", "5"),
    (r"made a profit of \(\boxed{\$10,000}\).", r"\$10,000"), (r"\fbox{7}", "7"),
    ("So\n#### 1,234", "1,234"), ("#### 5\nand\n#### 6 \n", "6"),
    ("The answer is 5 apples.", "5"), ("The answer is: $\\frac{3}{4}$ of it.", r"\frac{3}{4}"),
    ("Final answer: 12", "12"), ("The answer is 3.5. Then 7.", "3.5"),
    ("The answer is True", "True"),
    ("**The answer is 42**", "42"), ("The answer is 1. No, the answer is 2.", "2"),
    ("10,000", "10,000"), ("4{milesperhour}", "4"), (r"2\sqrt{3}", r"2\sqrt{3}"),
    ("(1, 2)", "(1, 2)"),
    ("7 km^2", "7 km^2"), ("Tom has 5 apples and 7 pears", "7"), ("so we get $x = 5$.", "x = 5"),
    ("He pays $18.50.", "$18.50"), ("It is -5.", "-5"), ("between 3-5 of them", "5"),
    ("Evelyn", "Evelyn"),
    ("It falls to \u22125 degrees.", "\u22125"), ("It is 5 3/4 inches long.", "5 3/4"),
    ("The answer is 12 apples because 3 times 4.", "12"),
    ("The answer is 12 apples, as 3 times 4 is 12.0.", "12"),
    ("The answer is 6 dollars an hour, for 10 hours.", "6"),
    ("The answer is the same as 5.", "5"), ("The answer is 3 + 4 = 7 apples.", "7"),
    ("He earned 2 million dollars.", "2 million"), ("The answer is 2 million.", "2 million"),
    ("no idea at all here", None), ("", None), ("\n", None), (r"\boxed{}", None),
])
def test_answers_are_found_in_text(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_the_last_closed_box_counts() -> None:
    assert boxed(r"\boxed{1} \boxed{ 2 } \boxed{3") == "2"
    assert boxed("no box") is None


def test_values_beyond_the_limits_are_undefined() -> None:
    nine = Number(Fraction(9))
    tower = Call("^", (nine, Call("^", (nine, nine))))
    assert exact_value(tower) is None
    with pytest.raises(Undefined):
        value_at(tower, 0)
    assert exact_value(Call("^", (nine, Number(Fraction(3))))) == 729
    assert value_at(Symbol("x"), 0) == value_at(Symbol("x"), 0) != value_at(Symbol("x"), 1)

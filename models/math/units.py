"""Units of measurement by their names, as they stand behind a number."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["RATES", "SCALES", "UNITS", "unit_name", "units_agree"]

_NAMES = """
mm millimeter millimetre|cm centimeter centimetre|dm decimeter decimetre|m meter metre
km kilometer kilometre|in inch inche|ft foot feet|yd yard|mi mile|mg milligram|g gram gramme
kg kilogram|t ton tonne|lb lbs pound|oz ounce|ml milliliter millilitre|l liter litre|cl|dl
gal gallon|qt quart|pt pint|cup|ms millisecond|s sec second|min minute|h hr hour|day|week|month
yr year|degree degrees deg|radian rad|% percent|dollar buck usd|cent|euro eur|gbp
point|unit|people person|student|way|time|celsius centigrade|fahrenheit
"""

UNITS: dict[str, str] = {
    name: names.split()[0] for line in _NAMES.split("\n") for names in line.split("|") if names
    for name in names.split()}
"""The first of its names, by each of its names without the plural's s."""
UNITS.update({f"{name}s": first for name, first in list(UNITS.items()) if f"{name}s" not in UNITS
              and len(name) > 1})

UNITS.update(mph="mi per h", kph="km per h", kmh="km per h")

SCALES: dict[str, Fraction] = {
    "dozen": Fraction(12),
    **{name: Fraction(10**zeros) for name, zeros in (
        ("hundred", 2), ("thousand", 3), ("million", 6), ("billion", 9), ("trillion", 12))},
    **{name: Fraction(1, part) for names, part in (
        ("half halve", 2), ("third", 3), ("quarter fourth", 4), ("fifth", 5), ("sixth", 6),
        ("seventh", 7), ("eighth", 8), ("ninth", 9), ("tenth", 10), ("hundredth", 100),
        ("thousandth", 1000)) for name in names.split()}}
"""Words behind a number that multiply it: they are part of the number and no units."""
SCALES.update({f"{name}s": scale for name, scale in list(SCALES.items())})

RATES = frozenset((("m", "s"), ("m", "h"), ("g", "l")))
"""Units of one letter that are so on both sides of a slash; others are variables."""


def units_agree(one: str, other: str) -> bool:
    """Whether two units can be the same: none agrees with any, a degree with that of any scale."""
    return (not one or not other or one == other
            or (min(one, other, key=len) == "degree" and max(one, other, key=len).startswith(
                "degree ")))


def unit_name(words: str) -> str:
    """One spelling for a unit: ``square centimeters`` and ``cm^2`` are the same."""
    parts: list[str] = []
    power = ""
    for word in words.casefold().replace("^", " ^").replace("/", " per ").split():
        if word in ("square", "sq", "squared", "^2"):
            power = "^2"
        elif word in ("cubic", "cu", "cubed", "^3"):
            power = "^3"
        elif word not in ("of", "a", "an", "the"):
            parts.append(UNITS.get(word, word[:-1] if word.endswith("s") else word))
    return " ".join(parts) + power

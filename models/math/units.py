"""Units of measurement by their names, as they stand behind a number."""

from __future__ import annotations

__all__ = ["UNITS", "unit_name"]

_NAMES = """
mm millimeter millimetre|cm centimeter centimetre|dm decimeter decimetre|m meter metre
km kilometer kilometre|in inch inche|ft foot feet|yd yard|mi mile|mg milligram|g gram gramme
kg kilogram|t ton tonne|lb lbs pound|oz ounce|ml milliliter millilitre|l liter litre|cl|dl
gal gallon|qt quart|pt pint|cup|ms millisecond|s sec second|min minute|h hr hour|day|week|month
yr year|mph|kph kmh|degree degrees deg|radian rad|% percent|dollar buck usd|cent|euro eur|gbp
point|unit|people person|student|way|time
"""

UNITS: dict[str, str] = {
    name: names.split()[0] for line in _NAMES.split("\n") for names in line.split("|") if names
    for name in names.split()}
"""The first of its names, by each of its names without the plural's s."""
UNITS.update({f"{name}s": first for name, first in list(UNITS.items()) if f"{name}s" not in UNITS
              and len(name) > 1})


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

"""Kubernetes quantities: ``500m``, ``4``, ``1.5Gi``, ``1e3``.

Owns: reading them. Pure. Next: ``values.py`` validates with it, ``planner/nodes.py`` reads nodes.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_QUANTITY = re.compile(
    r"\+?(?P<number>[0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})"
    r"((?P<suffix>[numkMGTPE]|[KMGTPE]i)|[eE](?P<exponent>[+-]?[0-9]{1,2}))?",
    re.ASCII,
)
_FACTORS = {
    "": Decimal(1),
    **{unit: Decimal(10) ** power for unit, power in zip("num", (-9, -6, -3), strict=True)},
    **{unit: Decimal(1000) ** (power + 1) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (power + 1) for power, unit in enumerate("KMGTPE")},
}


def parse_quantity(text: str) -> Decimal:
    """Value of a quantity. Raises ValueError where ``text`` is none, or a negative one."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 4, 1.5Gi or 20Gi")
    number = Decimal(match["number"])
    if match["exponent"]:
        return number * Decimal(10) ** int(match["exponent"])
    return number * _FACTORS[match["suffix"] or ""]


def parse_bytes(text: str) -> int:
    """Bytes of a quantity, rounded up as Kubernetes does."""
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def parse_millis(text: str) -> int:
    """Thousandths of a quantity, rounded up: CPU."""
    return int((parse_quantity(text) * 1000).to_integral_value(ROUND_CEILING))


def some_quantity(value: object) -> object:
    """Validator: a plain number is a quantity too, as everywhere in Kubernetes; zero is one."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value
    parse_quantity(str(value))
    return str(value)


def positive_quantity(value: object) -> object:
    """Validator: as ``some_quantity``, but zero is none."""
    text = some_quantity(value)
    if isinstance(text, str) and parse_quantity(text) <= 0:
        raise ValueError("must be a quantity above zero, such as 500m, 4, 1.5Gi or 20Gi")
    return text

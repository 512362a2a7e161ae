"""Numbers as people read them: ``12.3 MB``, ``4m 05s``, ``1.20M``, ``43%``.

Everything inside laconic is plain bytes, seconds and fractions; these functions are for the last step, to a
terminal or a page. All of them take anything a JSON file may hold: what is no number (``None``, a missing key) becomes
:data:`NOTHING`, and NaN and infinities keep their names, so a broken run looks broken and not empty.
"""

from __future__ import annotations

import math
from typing import Any

NOTHING = "–"
DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))  # B as in "7B parameters", not G


def number(value: object) -> float:
    """``value`` as a float, NaN when it is no number (a bool is none, a string neither)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def strict(value: Any) -> Any:
    """``value`` as strict JSON can hold it: what is no finite number is None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    return [strict(item) for item in value] if isinstance(value, list | tuple) else value


def size(nbytes: object) -> str:
    """Bytes in decimal units, as links are rated: ``512 B``, ``12.3 MB``."""
    special = _special(nbytes)
    if special is not None:
        return special
    value = number(nbytes)
    if abs(value) < 999.5:
        return f"{value:.0f} B"
    scaled, unit = _scale(value, DECIMAL)
    return f"{scaled} {unit}B"


def bandwidth(bytes_per_second: object) -> str:
    """A link's rate in bits a second, as links are sold: ``20.0 Mbit/s``."""
    special = _special(bytes_per_second)
    if special is not None:
        return special
    scaled, unit = _scale(8 * number(bytes_per_second), DECIMAL)
    return f"{scaled} {unit}bit/s"


def duration(seconds: object) -> str:
    """Seconds: ``430 µs``, ``12.3 ms``, ``45.6 s``, ``4m 05s``, ``2h 05m``, ``3d 04h``."""
    special = _special(seconds)
    if special is not None:
        return special
    value = number(seconds)
    if value < 0:
        return "-" + duration(-value)
    if value == 0:
        return "0 s"
    if value < 0.9995:
        scaled, unit = _scale(value * 1e6, ((1e3, "ms"),))
        return f"{scaled} {unit or 'µs'}"
    if value < 119.5:
        return f"{three_digits(value)} s"
    for below, small, large, marks in ((3600, 1, 60, "ms"), (86400, 60, 3600, "hm"), (math.inf, 3600, 86400, "dh")):
        whole, rest = divmod(round(value / small), large // small)
        if whole * large + rest * small < below:
            return f"{whole}{marks[0]} {rest:02d}{marks[1]}"
    raise AssertionError("the last is below infinity")


def count(n: object) -> str:
    """A count: every digit below ten thousand (``9,482``), three of them above (``12.3k``, ``1.20M``, ``7.00B``)."""
    special = _special(n)
    if special is not None:
        return special
    value = number(n)
    if abs(value) < 9999.5:
        return f"{value:,.0f}"
    scaled, unit = _scale(value, COUNTS)
    return f"{scaled}{unit}"


def rate(per_second: object, of: str = "") -> str:
    """How often a second: ``12.3 steps/s``; below one a second as well (``0.0420 steps/s``)."""
    special = _special(per_second)
    if special is not None:
        return special
    scaled, unit = _scale(number(per_second), DECIMAL)
    return f"{scaled}{unit} {of}/s" if of else f"{scaled}{unit}/s"


def share(fraction: object) -> str:
    """A fraction as percent. What is not quite nothing is ``<1%`` and what is not quite all is ``>99%``."""
    special = _special(fraction)
    if special is not None:
        return special
    value = number(fraction)
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 <= value < 0.99999:
        return ">99%"
    return f"{100 * value:.0f}%"


def factor(times: object) -> str:
    """A ratio: ``3.4×``, ``12×``, ``0.25×``."""
    special = _special(times)
    if special is not None:
        return special
    value = number(times)
    if abs(value) >= 9.95:
        return f"{count(round(value))}×"
    return f"{value:.1f}×" if abs(value) >= 0.95 else f"{value:.2f}×"


def loss(value: object) -> str:
    """A loss, with digits enough to tell two methods apart: ``1.523``, ``0.00212``, ``3.1e+05``."""
    special = _special(value)
    if special is not None:
        return special
    x = number(value)
    if x == 0 or 0.0995 <= abs(x) < 9999.5:
        return f"{x:.3f}"
    return three_digits(x) if 1e-4 <= abs(x) < 1 else f"{x:.1e}"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: ``1.50``, ``15.0``, ``0.0150``, ``1500``."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _scale(value: float, units: tuple[tuple[float, str], ...]) -> tuple[str, str]:
    rounded = float(f"{value:.3g}")  # first, or 999.9 kB would be written 1000 kB
    for scale, unit in units:
        if abs(rounded) >= scale:
            return three_digits(rounded / scale), unit
    return three_digits(rounded), ""


def _special(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING
    x = number(value)
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    return None

"""How many tokens each way needs for the progress that ddp makes with one: what little is known before a run.

These are priors, and said to be: they come from our own small runs (docs/benchmarks.md, Shakespeare, nano and micro),
where a twice longer run lowered ddp's held-out loss by 0.09 nats, so that a loss that is higher by x stands for
``2 ** (x / 0.09)`` times the tokens. Nobody knows how far they hold for another model; ``laconic plan --pilot``
measures in their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from laconic.methods import METHODS

HALVING = 0.0898  # nats by which a twice longer run of ddp is lower: 2.0230 after 500 steps, 1.8434 after 2000
WORST = 5.2  # times ddp's tokens that workers who never talk would need; a way that talks is taken to need no more
FEEDBACK = "measured with topk 1 %, and more than workers alone would need"


class Prior(NamedTuple):
    """``factor`` times ddp's tokens, and ``1 + rounds / n`` times that in a run with n synchronisations."""

    factor: float
    rounds: float
    source: str


class Progress(NamedTuple):
    """How many times ddp's tokens a way needs, and where that is from."""

    factor: float
    source: str
    measured: bool = False


PRIORS: dict[str, Prior] = {
    "alone": Prior(1.0, 0.0, "by definition, on one machine"),
    "ddp": Prior(1.0, 0.0, "by definition"),
    "ddp-half": Prior(1.0, 0.0, "0.3591 beside 0.3585 on fashion"),
    "ddp compress=int8": Prior(1.0, 0.0, "3.65 times sooner at 5 Mbit/s, with 3.7 times as many steps"),
    "ddp compress=int4": Prior(1.0, 0.0, "1.8388 beside 1.8434 after 2000 steps"),
    "powersgd": Prior(2.1, 0.0, "1.9409 beside 1.8434 after 2000 steps"),
    "signsgd": Prior(4.3, 0.0, "between 1.6 times (5 Mbit/s) and 12 times (2000 steps)"),
    "topk": Prior(WORST, 0.0, FEEDBACK),
    "dgc": Prior(WORST, 0.0, "as topk; +16 % after 1500 steps"),
    "ef21": Prior(WORST, 0.0, "taken to be as topk"),
    "econtrol": Prior(WORST, 0.0, "taken to be as topk"),
    "adaptive": Prior(WORST, 0.0, "taken to be as topk, though it sends more where it can"),
    "local-sgd": Prior(1.0, 36.0, "2.1573 beside 2.0230 with 20 synchronisations"),
    "diloco": Prior(1.0, 21.0, "2.1069 and 2.2478 beside 2.0230 with 20 and with 5 synchronisations"),
    "streaming-diloco": Prior(1.0, 16.0, "between 6 and 15 (+0.8 to +3.1 % on micro) and 58 (2.1955 on nano)"),
    "noloco": Prior(1.0, 44.0, "2.1740 beside 2.0230 with 20 synchronisations"),
    "slowmo": Prior(1.0, 21.0, "taken to be as diloco"),
    "co2": Prior(1.0, 42.0, "taken to be as diloco twice as seldom, for its answers are a period late"),
    "uneven-diloco": Prior(1.0, 21.0, "taken to be as diloco"),
    "uneven-ddp": Prior(1.0, 0.0, "as ddp: it weighs by samples"),
    "d-psgd": Prior(1.0, 2.0, "taken to be a little worse than ddp: it mixes each step"),
    "sgp": Prior(1.0, 2.0, "taken to be a little worse than ddp: it mixes each step"),
}
UNRANKED = {
    "accordion": "its level follows the gradients, which a price has not",
    "post-local-sgd": "it is ddp at first and local-sgd later",
    "hcef": "it chooses steps and bytes by itself as it goes",
    "just-one-byte": "it is for fine-tuning",
    "modest": "only a sample of the workers trains",
    "single-merge": "the workers' weights meet once, at the end",
    "srrw": "one model walks, and is trained in one place at a time",
}


def prior_of(method: str, settings: Mapping[str, Any]) -> Prior | None:
    """What is known of a way; None for one of which nothing is."""
    for key in (f"{method} compress={settings.get('compress')}", method):
        if key in PRIORS:
            known = PRIORS[key]
            other = settings.get("compress") is not None and key == method
            return known._replace(source=f"{known.source}; its compress is not counted") if other else known
    return None


def progress(method: str, settings: Mapping[str, Any], steps: float, prior: Prior | None = None) -> Progress | None:
    """How many times ddp's tokens a way needs for the progress of ``steps`` steps of ddp; None if nothing is known.

    The longer run has more synchronisations too: it takes ``m = factor steps (1 + rounds every / m)`` steps.

    Law:    at least ``factor``, at most WORST if that is less; falls as ``steps`` grows, towards ``factor``.
    """
    known = prior if prior is not None else prior_of(method, settings)
    if known is None:
        return None
    alike = known.factor * max(1.0, steps)
    apart = 4 * known.rounds * every(method, settings) / alike
    longer = known.factor * (1 + math.sqrt(1 + apart)) / 2
    return Progress(min(longer, max(known.factor, WORST)), known.source, measured=prior is not None)


def fitted(method: str, settings: Mapping[str, Any], factor: float, steps: float) -> Prior:
    """The prior of which a run of ``steps`` steps of this way is an example, that needed ``factor`` times ddp's tokens.

    Law:    ``progress`` with it, for as much progress, is ``factor``, where that lies between 1 and WORST.
    """
    source = f"pilot: {factor:.2f} times in {steps:,.0f} steps"
    known = prior_of(method, settings)
    if known is None or not known.rounds or factor <= known.factor:
        return Prior(factor, 0.0, source)
    synchronisations = steps / every(method, settings)
    return Prior(known.factor, (factor / known.factor - 1) * synchronisations, source)


def every(method: str, settings: Mapping[str, Any]) -> int:
    """Steps between synchronisations."""
    default = METHODS[method].defaults.get("every", 1) if method in METHODS else 1
    return int(settings.get("every", default))

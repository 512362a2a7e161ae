"""``laconic laws``: what loss a size and a number of tokens would reach, from runs that have finished."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.plan.farseer import Farseer
    from laconic.plan.finished import Finished
    from laconic.plan.laws import Chinchilla, Point

FAR = 4.0  # times the largest run beyond which a prediction says that it is far
SHARE = 0.9  # of laws fitted to drawn runs, that an interval holds


def laws(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="folders of runs, or of comparisons")],
    method: Annotated[str, typer.Option("--method", "-m", help="only the runs that this method trained")] = "",
    law: Annotated[
        str, typer.Option("--law", help="chinchilla, or farseer: token budgets that grow by one ratio")
    ] = "chinchilla",
    params: Annotated[float | None, typer.Option("--params", help="predict the loss of so many parameters …")] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", "-T", help="… on so many tokens")] = None,
    flops: Annotated[
        float | None, typer.Option("--flops", help="say which size is best for so many operations of training")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """Fit a law of the loss to finished runs of several sizes and token budgets, and predict other ones.

    The largest size is also predicted from the others alone, which shows how far the law is to be trusted.

    \b
      laconic laws runs/nano-* runs/micro-* runs/small-* --params 1e7 --tokens 1e8
      laconic laws runs/sweep --method ddp --flops 1e16 --json
    """
    from laconic.plan.finished import points_of

    if law not in ("chinchilla", "farseer"):
        raise ConfigError(f"laws: there is no law {law!r}; choose chinchilla or farseer")
    if (params is None) != (tokens is None):
        raise ConfigError("laws: a prediction needs both --params and --tokens")
    for name, value in (("--params", params), ("--tokens", tokens), ("--flops", flops)):
        if value is not None and not 1 <= value < math.inf:
            raise ConfigError(f"laws: {name} must be at least 1, got {value:g}")
    told = _told(points_of(runs, method), law, params, tokens, flops)
    if as_json:
        typer.echo(json.dumps(told, indent=1))
    else:
        typer.echo("\n".join(_page(told)))


def _told(found: Finished, law: str, params: float | None, tokens: float | None, flops: float | None) -> dict[str, Any]:
    made = _chinchilla(found.points) if law == "chinchilla" else _farseer(found.points)
    sizes = sorted({point.params for point in found.points})
    told: dict[str, Any] = {
        "law": law,
        "workload": found.workload,
        "method": found.method,
        "runs": len(found.points),
        "sizes": sizes,
        "most_tokens": max(point.tokens for point in found.points),
        "fit": made.fit,
        "missed_by": _missed(made.first.loss, found.points),
        "held_out": _held_out(found.points, law),
        "left_out": list(found.left_out),
    }
    if params is not None and tokens is not None:
        told["prediction"] = {"params": params, "tokens": tokens} | _spread(
            [one.loss(params, tokens) for one in made.laws]
        )
    if flops is not None:
        told["best"] = _best(made, flops, sizes)
    return told


@dataclass(frozen=True)
class _Made:
    """The law, those of drawn runs behind it, and what is told of its constants."""

    laws: Sequence[Chinchilla | Farseer]
    fit: dict[str, Any]

    @property
    def first(self) -> Chinchilla | Farseer:
        return self.laws[0]


def _chinchilla(points: Sequence[Point]) -> _Made:
    from laconic.plan.laws import fit, resampled

    law = fit(points)
    every = [law, *resampled(points, law)]
    return _Made(every, {f.name: _spread([getattr(one, f.name) for one in every]) for f in fields(law)})


def _farseer(points: Sequence[Point]) -> _Made:
    from laconic.plan.farseer import fit

    law = fit(points)
    curves = {"floor": law.floor, "scale": law.scale, "rate": law.rate}
    return _Made([law], {f"{name}.{f.name}": _spread([getattr(curve, f.name)])
                         for name, curve in curves.items() for f in fields(curve)})  # fmt: skip


def _spread(values: list[float]) -> dict[str, float | None]:
    """The first value, and between which two the others lie if there are any."""
    from laconic.plan.laws import interval

    low, high = interval(values[1:], SHARE) if len(values) > 1 else (None, None)
    return {"value": values[0], "low": low, "high": high}


def _missed(predict: Callable[[float, float], float], points: Sequence[Point]) -> dict[str, float]:
    """By which shares of the loss predictions miss: on average, and at worst."""
    misses = [abs(predict(point.params, point.tokens) / point.loss - 1) for point in points]
    return {"mean": sum(misses) / len(misses), "worst": max(misses)}


def _held_out(points: Sequence[Point], law: str) -> dict[str, Any] | None:
    """How far the largest size is missed by the law of the others; None if these give none."""
    from laconic.plan import farseer
    from laconic.plan import laws as chinchilla

    largest = max(point.params for point in points)
    try:
        fit = chinchilla.fit if law == "chinchilla" else farseer.fit
        predict = fit([point for point in points if point.params < largest]).loss
    except ConfigError:
        return None
    return {"params": largest} | _missed(predict, [point for point in points if point.params == largest])


def _best(made: _Made, flops: float, sizes: list[float]) -> dict[str, float]:
    from laconic.plan.laws import Chinchilla

    law = made.first
    params, tokens = (
        law.optimum(flops) if isinstance(law, Chinchilla) else law.optimum(flops, sizes[0], FAR * sizes[-1])
    )
    return {"flops": flops, "params": params, "tokens": tokens, "loss": law.loss(params, tokens)}


def _page(told: dict[str, Any]) -> list[str]:
    from laconic.bench import units

    lines = [f"{told['runs']} runs of {told['workload']} by {told['method']}: {len(told['sizes'])} sizes from "
             f"{units.count(told['sizes'][0])} to {units.count(told['sizes'][-1])} parameters, "
             f"up to {units.count(told['most_tokens'])} tokens", ""]  # fmt: skip
    form = {
        "chinchilla": "loss = floor + a / params^alpha + b / tokens^beta",
        "farseer": "loss = floor(params) + scale(params) / tokens^rate(params), each exp(slope params^power + offset)",
    }
    lines.append(form[told["law"]])
    lines += [f"  {name:<13}{_value(value)}" for name, value in told["fit"].items()]
    miss = told["missed_by"]
    lines += ["", f"It misses these runs by {miss['mean']:.2%} on average, {miss['worst']:.2%} at worst."]
    held = told["held_out"]
    if held is None:
        lines.append("Without the largest size they give no law, so nothing says how far it can be trusted.")
    else:
        lines.append(f"Fitted without the largest size, {units.count(held['params'])} parameters, it misses that by "
                     f"{held['mean']:.2%} on average, {held['worst']:.2%} at worst.")  # fmt: skip
    if "prediction" in told:
        lines += ["", _prediction(told)]
    if "best" in told:
        best = told["best"]
        lines += ["", f"{best['flops']:.3g} operations are best spent on {units.count(best['params'])} parameters and "
                  f"{units.count(best['tokens'])} tokens: loss {best['loss']:.4g}."
                  + _beyond(told, best["params"], best["tokens"])]  # fmt: skip
    return lines + [f"left out: {sentence}" for sentence in told["left_out"]]


def _prediction(told: dict[str, Any]) -> str:
    from laconic.bench import units

    wanted = told["prediction"]
    return (
        f"{units.count(wanted['params'])} parameters on {units.count(wanted['tokens'])} tokens: loss {_value(wanted)}."
        + _beyond(told, wanted["params"], wanted["tokens"])
    )


def _beyond(told: dict[str, Any], params: float, tokens: float) -> str:
    beyond = max(params / told["sizes"][-1], tokens / told["most_tokens"])
    return f" That is {beyond:.0f} times beyond any of these runs." if beyond > FAR else ""


def _value(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return f"{value['value']:.4g}"
    return f"{value['value']:.4g}  [{value['low']:.4g}, {value['high']:.4g}]"

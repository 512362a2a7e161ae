"""A plan in the terminal: the table of ways, why, what would help, and what was refused."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laconic.bench import units
from laconic.plan import reasons
from laconic.plan.prior import UNRANKED
from laconic.plan.ranking import Ranked, Ranking
from laconic.plan.reasons import Change, amount
from laconic.plan.site import described

PRIOR = (
    "needs: ddp's tokens times this, for the same progress; p from small runs (docs/planning.md), m measured by --pilot"
)


def show(ranking: Ranking, found: list[Change], say: Callable[[str], None]) -> None:
    """Say everything."""
    job, goal, site = ranking.job, ranking.goal, ranking.site
    say(f"{job.name}: {job.parameters:,} parameters; {described(site)}")
    order = f"least {goal.objective} first"
    if goal.objective != "time":
        order += f" of what takes at most {units.share(goal.slack)} longer than the quickest"
    say(f"planned for the progress that ddp makes with {units.count(goal.tokens)} tokens, {order}")
    if ranking.ranked:
        Console().print(_table(ranking))
        for sentence in [*reasons.why(ranking), reasons.lonely(ranking)]:
            say(sentence)
    else:
        say("No way fits.")
    if found:
        say("\nOne change to the cluster:")
        for change in found:
            say(f"  {reasons.told(change, goal, ranking.first)}")
    if ranking.refused:
        say("\nRefused:")
        for refused in ranking.refused:
            say(f"  {refused.way.name}: {refused.why}")
    say(f"\nNot ranked, since nothing says how many tokens they need here: {', '.join(UNRANKED)}.")
    for text in dict.fromkeys(text for one in ranking.ranked for text in one.price.notes):
        say(f"Note: {text}.")


def _table(ranking: Ranking) -> Table:
    goal = ranking.goal
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption=Text(PRIOR), caption_justify="left")
    table.add_column("way", overflow="fold", min_width=8)
    for name in ("tokens/s", "a step", "wait-\ning", "sent\na step", "memory", "needs", goal.objective):
        table.add_column(name, justify="right", no_wrap=True)

    def spread(one: Ranked) -> str:
        band = reasons.band_of(ranking, one)
        return "" if band is None else f" ±{(band[1] - band[0]) / 2:.0%}"

    def row(one: Ranked) -> list[str]:
        price = one.price
        return [
            one.way.name,
            units.rate(price.tokens_per_second).removesuffix("/s"),
            units.duration(price.step_seconds) + ("*" if price.learnt else "") + spread(one),
            units.share(price.waiting_share),
            units.size(price.bytes_out),
            units.size(price.memory.total),
            f"{units.factor(one.progress.factor)} {'m' if one.progress.measured else 'p'}",
            amount(one.score(goal.objective), goal),
        ]

    for place, one in enumerate(ranking.ranked):
        table.add_row(*row(one), style="bold" if place == 0 else None)
    if any(one.price.learnt for one in ranking.ranked):
        table.caption = Text(f"{PRIOR}\n*: corrected by what earlier runs took")
    return table

"""The published methods, each a few lines made of the parts, with the paper's defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.aggregate import Rule, majority
from laconic.compress import (
    Compressor,
    ef21_sgdm,
    error_feedback,
    half,
    identity,
    momentum_correction,
    random_k,
    sign,
    topk,
    warm_up,
)
from laconic.compress import e3m0 as e3m0_compressor
from laconic.compress import econtrol as econtrol_compressor
from laconic.compress import ef21 as ef21_compressor
from laconic.errors import ClashError, ConfigError, unknown
from laconic.exchange import Exchange, everyone, neighbours, pairs, planned, push_sum, two_phase, with_momentum
from laconic.exchange import accordion as accordion_exchange
from laconic.exchange import adaptive as adaptive_exchange
from laconic.exchange import graph as graph_exchange
from laconic.exchange import powersgd as powersgd_exchange
from laconic.exchange.adaptive import GRID
from laconic.nesting import bind, chain_of, read
from laconic.sync import (
    Sync,
    accordion_batch,
    every_step,
    gossip,
    local_steps,
    switch,
    uneven_batches,
    uneven_steps,
    walk,
)
from laconic.sync import co2 as co2_sync
from laconic.sync import diloco as diloco_sync
from laconic.sync import hcef as hcef_sync
from laconic.sync import modest as modest_sync
from laconic.sync import noloco as noloco_sync
from laconic.sync import one_byte as one_byte_sync
from laconic.sync import single_merge as single_merge_sync
from laconic.sync import slowmo as slowmo_sync
from laconic.sync import streaming as streaming_sync

Compress = Compressor | str | Sequence[str] | None
Combine = Rule | str | None


@dataclass(frozen=True)
class Method:
    """A named method: how to make it, the six choices it stands for, and where it comes from."""

    name: str
    make: Callable[..., Sync]
    choices: dict[str, str]
    wire: str
    source: str

    @property
    def summary(self) -> str:
        """One sentence."""
        return (inspect.getdoc(self.make) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def defaults(self) -> dict[str, Any]:
        """Every setting with its default."""
        return {p.name: p.default for p in inspect.signature(self.make).parameters.values()}


METHODS: dict[str, Method] = {}
REPLACED = ("density", "warmup_steps", "warmup_start")  # settings of the compressor that ``compress`` replaces
CHOICES = ("send", "every", "apply", "to", "combine", "compress")


Make = Callable[..., Sync]


def method(name: str, *, wire: str, source: str, **choices: str) -> Callable[[Make], Make]:
    """Register a function as a named method; ``choices`` answers the six questions of the design."""
    assert tuple(choices) == CHOICES, f"{name}: answer {CHOICES}, in this order"

    def register(make: Make) -> Make:
        METHODS[name] = Method(name, make, choices, wire, source)
        return make

    return register


def get(name: str) -> Method:
    """A named method.

    Raises: ConfigError, with the nearest name.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def build(method: str | Sync, settings: dict[str, Any] | None = None) -> Sync:
    """The sync of a named method with some settings changed, of a nesting as text, or as it is.

    Raises: ConfigError, ClashError: an unknown name or setting, a value out of range, two choices that clash.
    """
    if isinstance(method, Sync):
        return method
    if "(" in method:
        if settings:
            raise ConfigError(f"settings {sorted(settings)} are for named methods; write them into {method!r}")
        sync = read(method)
        if not isinstance(sync, Sync):
            raise ConfigError(
                f"{method!r} is not a whole method: wrap it in every_step(...), diloco(...) or another sync"
            )
        return sync
    given = dict(settings or {})
    replaced = [key for key in REPLACED if key in given] if given.get("compress") is not None else []
    if replaced:
        raise ClashError(
            f"{method}: compress takes the place of its own Top-k, so {' and '.join(replaced)} would have no effect; "
            "write it into compress, as topk(0.05)"
        )
    return bind(method, get(method).make, [], given)


def _compressor(compress: Compress, default: Compressor, feedback: bool) -> Compressor:
    chosen = default if compress is None else compress if isinstance(compress, Compressor) else chain_of(compress)
    return error_feedback(chosen) if feedback and chosen.name != "identity" else chosen


def _everyone(compressor: Compressor, rule: Rule | None, feedback: bool, plan: str | None = None) -> Exchange:
    """Everyone with everyone, in two phases where packets hold all values and cannot be added in flight.

    With a ``plan`` sums go by it.
    """
    if plan is not None:
        return planned(compressor, plan, combine=rule)
    dense = not (compressor.summable or compressor.sparse or compressor.momentum or compressor.integrate)
    if dense and (rule is None or rule.linear):
        return two_phase(compressor, rule, feedback)
    return everyone(compressor, rule)


def _rule(combine: Combine) -> Rule | None:
    if isinstance(combine, str):
        rule = read(combine)
        if not isinstance(rule, Rule):
            raise ConfigError(f"combine: {combine!r} is not a rule; there are mean, weighted_mean and majority")
        return rule
    return combine


@method(
    "ddp",
    send="gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, each step",
    source="Li et al. 2020, arXiv:2006.15704 (PyTorch DistributedDataParallel)",
)
def ddp(compress: Compress = None, feedback: bool = True, combine: Combine = None, plan: str | None = None) -> Sync:
    """Data-parallel training: average gradients each step.

    compress: a compressor or a list (a chain); feedback: keep what it drops; combine: the rule; plan: by which sums go
    about (laconic collectives has them): auto for the cheapest on these links, none for the link's own.
    """
    return every_step(_everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback, plan))


@method(
    "ddp-half",
    send="gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step",
    to="everyone (all-reduce)",
    combine="mean",
    compress="16 bits a value",
    wire="2 (n-1)/n x 2 bytes a parameter, each step",
    source="torch's fp16_compress_hook and bf16_compress_hook",
)
def ddp_half(kind: str = "fp16", combine: Combine = None, plan: str | None = None) -> Sync:
    """Data-parallel training with 16-bit gradients.

    kind: fp16 (finer, up to 65504) or bf16 (float32's range; gloo cannot sum it, so a ring over TCP does); combine: the
    rule; plan: as ddp's.
    """
    return every_step(_everyone(half(kind), _rule(combine), False, plan))


@method(
    "topk",
    send="gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step",
    to="everyone (all-gather)",
    combine="mean",
    compress="the largest entries, with error feedback",
    wire="(n-1) x about 5 bytes x density a parameter, each step",
    source="Stich et al. 2018, arXiv:1809.07599; feedback: Karimireddy et al. 2019, arXiv:1901.09847",
)
def topk_method(
    density: float = 0.01, feedback: bool = True, compress: Compress = None, combine: Combine = None
) -> Sync:
    """Send the largest entries of the gradient and keep the rest for later.

    density: share of entries sent; feedback: keep what is not; compress: another compressor in Top-k's place; combine:
    the rule.
    """
    return every_step(everyone(_compressor(compress, topk(density), feedback), _rule(combine)))


@method(
    "dgc",
    send="accumulated momentum",
    every="each step",
    apply="the inner optimizer's step, without momentum of its own",
    to="everyone (all-gather)",
    combine="mean",
    compress="the largest entries, with momentum correction, factor masking and warm-up",
    wire="(n-1) x about 5 bytes x density a parameter, each step (more during warm-up)",
    source="Lin et al. 2018, arXiv:1712.01887 (Deep Gradient Compression)",
)
def dgc(
    density: float = 0.001,
    momentum: float = 0.9,
    masking: bool = True,
    clip: float | None = 1.0,
    warmup_steps: int = 100,
    warmup_start: float = 0.25,
    compress: Compress = None,
    combine: Combine = None,
) -> Sync:
    """Deep Gradient Compression: 99.9 % sparse gradients, with the four parts that keep the dense run's accuracy.

    density: share of entries sent, after the warm-up; momentum: carried by the method, so the optimizer has none;
    masking: clear the momentum of what was sent; clip: bound on the gradient's norm, on each worker's own times the
    root of their number, none to switch off; warmup_steps: over which the density falls from warmup_start, 0 to switch
    off; warmup_start: the density at first; compress: another compressor in Top-k's place; combine: the rule.
    """
    sparse = warm_up(topk, density, max(density, warmup_start), warmup_steps)
    if compress is not None:
        sparse = _compressor(compress, sparse, feedback=False)
    return every_step(
        everyone(
            momentum_correction(sparse, momentum, masking),
            _rule(combine),
            small=momentum_correction(identity(), momentum, masking=False),
        ),
        clip=clip,
    )


@method(
    "ef21",
    send="the change of the gradient since it was last told",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step, on the sum of all changes",
    to="everyone (all-gather)",
    combine="mean",
    compress="the largest entries of the difference",
    wire="(n-1) x 5 bytes x density a parameter, each step (at 1 %)",
    source="Richtárik et al. 2021, arXiv:2106.05203; with momentum: Fatkhullin et al. 2023, arXiv:2305.15155",
)
def ef21(
    density: float = 0.01, a: float = 1.0, start: str = "zero", compress: Compress = None, combine: Combine = None
) -> Sync:
    """EF21: send how the gradient differs from what the peers hold of it, so that unlike data leaves no floor.

    density: share of entries sent; a: the newest gradient's share in a running average that is sent in its place, under
    1 EF21-SGDM, which carries momentum itself; start: zero, or dense to send the first gradient whole; compress:
    another compressor in Top-k's place; combine: the rule.
    """
    inner = _compressor(compress, topk(density), feedback=False)
    if a == 1:
        return every_step(everyone(ef21_compressor(inner, start), _rule(combine)))
    return every_step(everyone(ef21_sgdm(inner, a, start), _rule(combine), small=ef21_sgdm(identity(), a)))


@method(
    "econtrol",
    send="the change of the gradient, and a share of what was missed",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step, on the sum of all changes",
    to="everyone (all-gather)",
    combine="mean",
    compress="the largest entries of the difference, with controlled feedback",
    wire="(n-1) x 5 bytes x density a parameter, each step (at 1 %)",
    source="Gao, Islamov and Stich 2023, arXiv:2311.05645",
)
def econtrol(
    density: float = 0.01,
    eta: float | None = None,
    start: str = "zero",
    compress: Compress = None,
    combine: Combine = None,
) -> Sync:
    """EControl: EF21 with a measured share of error feedback, for unlike data and small batches both.

    density: share of entries sent; eta: share of the error that is sent anew, none for the density, at most 0.1; start:
    zero, or dense to send the first gradient whole; compress: another compressor in Top-k's place; combine: the rule.
    """
    inner = _compressor(compress, topk(density), feedback=False)
    return every_step(everyone(econtrol_compressor(inner, eta, start), _rule(combine)))


@method(
    "powersgd",
    send="gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step",
    to="everyone (two all-reduces)",
    combine="mean",
    compress="low rank, warm start, error feedback",
    wire="2 (n-1)/n x 4 bytes x rank (rows + columns) a matrix, each step; vectors whole",
    source="Vogels et al. 2019, arXiv:1905.13727",
)
def powersgd(rank: int = 4, warm_start: bool = True, min_rate: float = 2.0) -> Sync:
    """PowerSGD: each gradient matrix as the product of two thin ones.

    rank: columns of the thin matrices; warm_start: begin each step where the last ended; min_rate: leave a matrix whole
    that would not shrink by this much.
    """
    return every_step(powersgd_exchange(rank, warm_start, min_rate))


ACCORDION_LEVELS: dict[str, tuple[float, float]] = {"topk": (0.1, 0.01), "powersgd": (4, 1), "batch": (1, 8)}


@method(
    "accordion",
    send="gradients",
    every="each step, bucket by bucket while backward runs; kind=batch: each step, or each of several",
    apply="the inner optimizer's step",
    to="everyone",
    combine="mean",
    compress="Top-k or low rank at one of two levels, chosen for each tensor by whether its gradient changes",
    wire="topk's or powersgd's, at each tensor's level, and 8 bytes a tensor once every H steps",
    source="Agarwal et al. 2020, arXiv:2010.16248",
)
def accordion(
    kind: str = "topk",
    light: float | None = None,
    heavy: float | None = None,
    every: int = 100,
    eta: float = 0.5,
    scale_lr: bool = False,
) -> Sync:
    """Accordion: compress lightly while the gradient changes, and heavily while it does not.

    kind: what the level is of: topk (its density), powersgd (its rank), or batch (steps whose gradients are sent as
    one); light, heavy: the two levels, if none 0.1 and 0.01, 4 and 1, or 1 and 8; every: steps in a window, at whose
    end the level is decided; eta: the relative change of the norm that is light; scale_lr: with kind=batch, multiply
    the learning rate by the steps sent as one.
    """
    if kind not in ACCORDION_LEVELS:
        raise unknown("accordion kind", kind, ACCORDION_LEVELS)
    if scale_lr and kind != "batch":
        raise ClashError(f"accordion: scale_lr is for kind='batch', and would do nothing with kind={kind!r}")
    much, little = (
        given if given is not None else own for given, own in zip((light, heavy), ACCORDION_LEVELS[kind], strict=True)
    )
    if (much < little) != (kind == "batch") and much != little:
        raise ConfigError(
            f"accordion: light={much:g} would send less than heavy={little:g}; light is the level at which more is sent"
        )
    if kind == "topk":
        return every_step(
            accordion_exchange(everyone(error_feedback(topk(much))), everyone(error_feedback(topk(little))), every, eta)
        )
    counts = [int(level) for level in (much, little) if level == int(level)]
    if len(counts) < 2:
        raise ConfigError(f"accordion: with kind={kind!r} levels are whole numbers, got light={much}, heavy={little}")
    if kind == "powersgd":
        talk = accordion_exchange(powersgd_exchange(counts[0]), powersgd_exchange(counts[1]), every, eta)
        return every_step(talk)
    return accordion_batch(everyone(), counts[0], counts[1], every, eta, scale_lr)


@method(
    "adaptive",
    send="gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step",
    to="everyone (all-gather; all-reduce with kind=random_k)",
    combine="mean",
    compress="as many entries as the link carries behind the computation, with error feedback",
    wire="topk's at the density of the moment, and a few bytes to each peer once every H steps",
    source="laconic's own controller; Top-k: Stich et al. 2018, arXiv:1809.07599",
)
def adaptive(
    kind: str = "topk",
    grid: Sequence[float] = GRID,
    room: float = 0.5,
    every: int = 10,
    smoothing: float = 0.3,
) -> Sync:
    """Send the largest entries, as many as hide behind the computation: the density follows the measured link.

    kind: topk or random_k; grid: the densities to choose from, rising; room: the share of the time of computation that
    an exchange may take; every: steps between measurements; smoothing: weight of the newest measurement.
    """
    kinds = {"topk": topk, "random_k": random_k}
    if kind not in kinds:
        raise unknown("adaptive kind", kind, kinds)
    return every_step(adaptive_exchange(kinds[kind], grid, room, every, smoothing))


@method(
    "signsgd",
    send="signs of gradients",
    every="each step, bucket by bucket while backward runs",
    apply="the inner optimizer's step, on gradients of one size",
    to="everyone (all-to-all, all-gather)",
    combine="majority vote; with feedback the mean",
    compress="one bit a value",
    wire="2 (n-1)/n x 1/8 byte a parameter, each step",
    source="Bernstein et al. 2018, arXiv:1802.04434 (and Signum); feedback: Karimireddy et al. 2019, arXiv:1901.09847",
)
def signsgd(feedback: bool = False, momentum: float = 0.0) -> Sync:
    """signSGD: one bit a value each way, decided by majority.

    feedback: send mean magnitudes too and keep what they miss, which is EF-signSGD; momentum: above 0, the signs of
    each worker's running mean, which is Signum: the optimizer has no momentum of its own then.
    """
    if feedback:
        talk = two_phase(error_feedback(sign()))
    else:
        talk = two_phase(sign(), majority(), feedback=False, small=sign())
    return every_step(with_momentum(talk, momentum) if momentum else talk)


@method(
    "local-sgd",
    send="the change of the weights",
    every="each H steps",
    apply="the mean becomes the weights",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, once every H steps",
    source="Stich 2018, arXiv:1805.09767",
)
def local_sgd(
    every: int = 16,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    compress: Compress = None,
    feedback: bool = True,
    combine: Combine = None,
) -> Sync:
    """Local SGD: several steps alone, then the mean of the weights.

    every: H; fragments, overlap, mixing, pattern: as diloco's; compress, feedback, combine: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback)
    return local_steps(talk, every, fragments, overlap, mixing, pattern)


@method(
    "post-local-sgd",
    send="gradients at first, then the change of the weights",
    every="each step at first, then each H steps",
    apply="the inner optimizer's step; the mean becomes the weights",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, each step, and after start once every H steps",
    source="Lin et al. 2018, arXiv:1808.07217",
)
def post_local_sgd(
    start: int | None = 1000,
    every: int = 16,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    compress: Compress = None,
    feedback: bool = True,
    combine: Combine = None,
) -> Sync:
    """Post-local SGD: gradients each step at first, and local SGD for the rest of the run.

    start: the steps before local SGD, none for until the learning rate has halved; every: H from then on; fragments,
    overlap, mixing, pattern: as diloco's; compress, feedback, combine: as ddp's, in both parts.
    """
    first, then = (_everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback) for _ in range(2))
    return switch(every_step(first), local_steps(then, every, fragments, overlap, mixing, pattern), start)


@method(
    "slowmo",
    send="the change of the weights",
    every="each H steps",
    apply="the mean, with a slow momentum in units of the gradient",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, once every H steps",
    source="Wang et al. 2019, arXiv:1910.00643",
)
def slowmo(
    every: int = 48,
    lr: float = 1.0,
    momentum: float = 0.5,
    floor: float = 0.01,
    inner: str = "keep",
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    compress: Compress = None,
    feedback: bool = False,
    combine: Combine = None,
) -> Sync:
    """SlowMo: several steps alone, then a step with a slow momentum that follows the learning rate.

    every: H; lr, momentum: the slow step's; floor: the least learning rate that the momentum is divided by, as a share
    of the highest so far; inner: keep, or reset for an inner optimizer that starts anew each round; fragments, overlap,
    mixing, pattern: as diloco's; compress, feedback, combine: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback)
    return slowmo_sync(talk, every, lr, momentum, floor, inner, fragments, overlap, mixing, pattern)


@method(
    "co2",
    send="the change of the weights",
    every="each H steps, overlapped by the next H",
    apply="the mean of the round before, divided by its staleness, with a slow momentum",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, once every H steps, behind H steps",
    source="Sun et al. 2024, arXiv:2401.16265",
)
def co2(
    every: int = 48,
    lr: float = 1.0,
    momentum: float = 0.2,
    gap: str | float = "aware",
    clip: float | None = None,
    contraction: float = 1.0,
    floor: float = 0.01,
    overlap: int | None = None,
    mixing: float | None = None,
    fragments: int = 1,
    pattern: str = "strided",
    compress: Compress = None,
    feedback: bool = False,
    combine: Combine = None,
) -> Sync:
    """CO2: the mean of a round travels while the next one is computed; nobody waits if it takes no longer.

    every: H; lr, momentum: the slow step's; gap: by what a stale change is divided, aware or a number; clip: bound on
    the norm of the slow momentum, none for no bound; contraction: the share of the error that a round removes at most,
    by which lr and momentum are checked; floor: as slowmo's; overlap: tau, none for H; mixing, fragments, pattern: as
    diloco's; compress, feedback, combine: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback)
    return co2_sync(talk, every, lr, momentum, gap, clip, contraction, floor, overlap, mixing, fragments, pattern)


@method(
    "diloco",
    send="the change of the weights",
    every="each H steps",
    apply="Nesterov outer step on the shared weights",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, once every H steps",
    source="Douillard et al. 2023, arXiv:2311.08105",
)
def diloco(
    every: int = 500,
    lr: float = 0.7,
    momentum: float = 0.9,
    form: str = "nesterov",
    warmup_rounds: int = 0,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    eager: bool = False,
    compress: Compress = None,
    feedback: bool = False,
    combine: Combine = None,
    plan: str | None = None,
) -> Sync:
    """DiLoCo: hundreds of steps alone, then an outer step with momentum.

    every: H; lr, momentum, form: the outer step's; warmup_rounds: outer steps over which lr rises; fragments: parts of
    the model that leave in turn; overlap: tau, steps to hide each behind; mixing: the worker's own share when a part
    comes back, none for half where some steps overlap; pattern: strided or sequential; eager: with overlap=every, apply
    a worker's own part of a change at once; compress, feedback, combine, plan: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback, plan)
    return diloco_sync(talk, every, lr, momentum, form, warmup_rounds, fragments, overlap, mixing, pattern, eager)


@method(
    "streaming-diloco",
    send="the change of one fragment's weights",
    every="each H steps, fragments in turn, overlapped by tau steps",
    apply="Nesterov outer step, mixed with the worker's own",
    to="everyone (all-gather)",
    combine="mean",
    compress="E3M0, 4 bits a value",
    wire="(n-1) x (0.5 + 2/128) bytes a parameter in every H steps, one fragment at a time",
    source="Douillard et al. 2025, arXiv:2501.18512",
)
def streaming_diloco(
    every: int = 100,
    fragments: int = 3,
    overlap: int = 1,
    mixing: float | None = None,
    lr: float = 0.4,
    momentum: float = 0.9,
    pattern: str = "strided",
    form: str = "nesterov",
    warmup_rounds: int = 0,
    eager: bool = False,
    compress: Compress = None,
    feedback: bool = False,
    combine: Combine = None,
) -> Sync:
    """Streaming DiLoCo: a fragment of the model at a time, in 4 bits, hidden behind the steps that follow.

    every: H; fragments: how many; overlap: tau, steps to hide each behind; mixing: the worker's own share when a
    fragment comes back, none for half; lr, momentum, form: the outer step's; pattern: strided or sequential;
    warmup_rounds, eager: as diloco's; compress, feedback, combine: as ddp's.
    """
    talk = everyone(_compressor(compress, e3m0_compressor(), feedback), _rule(combine))
    return streaming_sync(talk, every, fragments, overlap, mixing, lr, momentum, pattern, form, warmup_rounds, eager)


@method(
    "uneven-diloco",
    send="the change of the weights, scaled to the mean number of steps",
    every="each round, of as many steps as a worker's speed allows, H on average",
    apply="Nesterov outer step on the shared weights",
    to="everyone (all-reduce)",
    combine="mean",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, once a round; a few bytes to each peer",
    source="Douillard et al. 2023, arXiv:2311.08105; the scaling: Wang et al. 2020, arXiv:2007.07481 (FedNova)",
)
def uneven_diloco(
    every: int = 500,
    least: int = 1,
    most: int | None = None,
    lr: float = 0.7,
    momentum: float = 0.9,
    form: str = "nesterov",
    compress: Compress = None,
    feedback: bool = False,
    combine: Combine = None,
) -> Sync:
    """DiLoCo of uneven workers: each takes as many steps as its speed allows, and none waits for the slowest.

    every: H, the mean number of steps in a round; least, most: bounds of a worker's steps in a round; lr, momentum,
    form: the outer step's; compress, feedback, combine: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback)
    return uneven_steps(diloco_sync(talk, 1, lr, momentum, form), every, least, most)


@method(
    "uneven-ddp",
    send="gradients, each weighed by its share of the batch",
    every="each step, after backward",
    apply="the inner optimizer's step",
    to="everyone (all-reduce)",
    combine="mean over samples",
    compress="nothing",
    wire="2 (n-1)/n x 4 bytes a parameter, each step; a few bytes to each peer in some steps",
    source="Li et al. 2020, arXiv:2006.15704 (PyTorch DistributedDataParallel); the shares are laconic's own",
)
def uneven_ddp(
    parts: int = 16,
    every: int = 16,
    compress: Compress = None,
    feedback: bool = True,
    combine: Combine = None,
) -> Sync:
    """Data-parallel training of uneven workers: each has a share of the batch in proportion to its speed.

    parts: into which an ordinary batch is dealt, a divisor of its rows, 1 for equal batches; every: steps between
    measurements; compress, feedback, combine: as ddp's.
    """
    talk = _everyone(_compressor(compress, identity(), feedback), _rule(combine), feedback)
    return uneven_batches(talk, parts, every)


@method(
    "hcef",
    send="the change of the weights, scaled to the mean number of steps",
    every="each round, of as many steps as a worker's speed and link allow",
    apply="the mean becomes the weights",
    to="everyone (all-gather)",
    combine="mean, weighted by shares of the data",
    compress="the largest entries, as many as a worker's link allows, with error feedback",
    wire="(n-1) x about 5 bytes x density a parameter, once a round; 64 kB to one peer in turn",
    source="a reconstruction from the abstract of arXiv:2409.04022 (HCEF); normalisation: arXiv:2007.07481 (FedNova)",
)
def hcef(
    least_steps: int = 1,
    most_steps: int = 50,
    least_density: float = 0.01,
    most_density: float = 1.0,
    weight: float = 1.0,
    drift_cost: float = 0.01,
    variance_cost: float = 0.05,
    joules: float = 0.0,
    power: float = 0.0,
    allowance: float | None = None,
    tradeoff: float = 1.0,
    control: str = "plan",
    budget: float = 1.0,
) -> Sync:
    """HCEF, reconstructed: uneven workers take as many steps, and send as much, as lets all end a round together.

    least_steps, most_steps: bounds of the steps in a round; least_density, most_density: bounds of the share of entries
    sent; weight: this worker's share of the data; drift_cost: what steps squared cost in steps of progress;
    variance_cost: what 1/density - 1 costs; joules: of a step; power: watts while sending; allowance: joules a round,
    none for no bound; tradeoff: weight of progress against energy; control: plan, or flexfl, by which steps follow
    speed alone and each worker chooses its density when it sends; budget: with flexfl, mean seconds of sending a round.
    """
    return hcef_sync(
        topk,
        least_steps,
        most_steps,
        least_density,
        most_density,
        weight,
        drift_cost,
        variance_cost,
        joules,
        power,
        allowance,
        tradeoff,
        control,
        budget,
    )


@method(
    "noloco",
    send="the weights",
    every="each H steps",
    apply="heavy-ball outer step, pulled towards the pair's mean",
    to="one random partner",
    combine="mean of the pair",
    compress="nothing",
    wire="4 bytes a parameter to one peer, once every H steps (8 if mixing is not lr)",
    source="Kolehmainen et al. 2025, arXiv:2506.10911",
)
def noloco(
    every: int = 50,
    lr: float = 0.7,
    momentum: float = 0.5,
    mixing: float | None = None,
    group: int = 2,
    fragments: int = 1,
    overlap: int = 0,
    own: float | None = None,
    pattern: str = "strided",
    seed: int = 0,
    missing: str = "alone",
    patience: float | None = None,
    compress: Compress = None,
    combine: Combine = None,
) -> Sync:
    """NoLoCo: an outer step with one random partner; no collective, nobody waits for everyone.

    every: H; lr, momentum: the outer step's; mixing: the pull towards the group's mean, lr if not given; group: how
    many meet, 2 for pairs; fragments, overlap, pattern: as diloco's; own: the worker's own share when an answer comes,
    none for half where some steps overlap; seed: of the groups, in a run the run's own; missing: alone to go on without
    a partner that is gone, or raise; patience: seconds of silence after which it is, none for the link's timeout;
    compress: int8 or half, say; combine: only mean.
    """
    rule = _rule(combine)
    talk = pairs(_compressor(compress, identity(), False), rule, seed, group, missing, patience)
    return noloco_sync(talk, every, lr, momentum, mixing, fragments, overlap, own, pattern)


@method(
    "just-one-byte",
    send="the slope of the loss along random directions",
    every="each step",
    apply="the mean of slopes times directions, which everyone regenerates",
    to="everyone (all-gather)",
    combine="mean",
    compress="a sign and a logarithm in one byte",
    wire="(n-1) x samples bytes and a header, each step, whatever the model's size",
    source="Zelikman et al. 2023, arXiv:2306.10015; the step: Malladi et al. 2023, arXiv:2305.17333 (MeZO)",
)
def just_one_byte(
    samples: int = 1,
    eps: float = 1e-3,
    directions: str = "gaussian",
    most: float | None = None,
    keep: int = 1000,
) -> Sync:
    """Just One Byte: fine-tune without backward, by the loss to both sides of random directions.

    samples: directions a worker looks along in a step; eps: how far; directions: gaussian, rademacher (cheaper) or axes
    (one entry after the other); most: bound on a slope, none for no bound; keep: rounds on record, for workers that
    were away.
    """
    return one_byte_sync(None, samples, eps, directions, most, keep)


@method(
    "modest",
    send="the weights",
    every="each round, of H steps of whoever is drawn for it",
    apply="the mean becomes the weights of the next round's sample",
    to="one or a few of the sample, drawn afresh each round, and from them to the sample",
    combine="mean",
    compress="nothing",
    wire="2 a s x 4 bytes a parameter a round, in the whole network, whatever its size",
    source="de Vos et al. 2023, arXiv:2302.13837",
)
def modest(
    every: int = 5,
    sample: int | None = None,
    aggregators: int = 1,
    success: float = 1.0,
    window: int | None = None,
    ping_timeout: float = 5.0,
    resend: float = 1.0,
    patience: float = 300.0,
    least: int = 3,
    absent: Sequence[int] = (),
    seed: int = 0,
    compress: Compress = None,
) -> Sync:
    """MoDeST: a small sample trains each round and one of it averages, without a server; crashes are passed over.

    every: H; sample: s, workers in a round, none for 10 or all of fewer; aggregators: a, who average; success: share
    of the models that make a round; window: rounds after which the silent are asked no more, none for 50 or 10 n/s;
    ping_timeout: seconds after which a question is given up; resend: and asked again; patience: seconds an aggregator
    waits; least: models it needs then; absent: ranks that join later; seed: of the samples; compress: int8 or half,
    say.
    """
    return modest_sync(
        _compressor(compress, identity(), False),
        every,
        sample,
        aggregators,
        success,
        window,
        ping_timeout,
        resend,
        patience,
        least,
        absent,
        seed,
    )


@method(
    "d-psgd",
    send="the weights",
    every="each step, beside the step that follows",
    apply="what mixing changed is added to what the step moved",
    to="the neighbours in a graph",
    combine="mean, by weights whose rows and columns sum to 1",
    compress="nothing",
    wire="neighbours x 4 bytes a parameter, each step, however many workers there are",
    source="Lian et al. 2017, arXiv:1705.09056",
)
def d_psgd(
    graph: str = "ring",
    every: int = 1,
    overlap: int = 1,
    weights: str | Sequence[Sequence[float]] = "metropolis",
    seed: int = 0,
    compress: Compress = None,
) -> Sync:
    """D-PSGD: mix the weights with neighbours in a graph, beside the step that follows; nobody waits for everyone.

    graph: ring, torus, exponential, one-peer, complete, random, regular:3, edges such as 0-1,1-2, or a file of them;
    every: steps between mixings; overlap: steps that a mixing may take, 1 for the gradient before the mixing, 0 for
    mixing what the step made; weights: metropolis, or a matrix; seed: of a random graph; compress: int8 or half, say.
    """
    return gossip(graph_exchange(_compressor(compress, identity(), False), graph, weights, seed), every, overlap)


@method(
    "sgp",
    send="shares of the weights, and of a number that began as 1",
    every="each step",
    apply="the quotient becomes the weights",
    to="the next in turn of the workers 1, 2, 4, 8 ... places on",
    combine="push-sum: sums of shares, divided by the sum of numbers",
    compress="nothing",
    wire="4 bytes a parameter to one peer, each step, however many workers there are",
    source="Assran et al. 2019, arXiv:1811.10792",
)
def sgp(
    graph: str = "one-peer",
    every: int = 1,
    overlap: int = 0,
    late: int = 0,
    patience: float | None = None,
    weights: str | Sequence[Sequence[float]] = "uniform",
    seed: int = 0,
    compress: Compress = None,
) -> Sync:
    """Stochastic gradient push: one message to one peer a step, on graphs that go one way, change, or lose messages.

    graph: as d-psgd's, also one way (0>1,1>2,2>0); every: steps between rounds; overlap: steps that a round may take, 0
    to wait for it; late: rounds after which a message is taken; patience: where messages may be lost, seconds to wait
    for one, none where all arrive; weights: uniform, or a matrix of shares; seed: of a random graph; compress: int8 or
    half, say.
    """
    talk = push_sum(_compressor(compress, identity(), False), graph, weights, late, patience, seed)
    return gossip(talk, every, overlap)


@method(
    "single-merge",
    send="the weights",
    every="each K steps, to few; and once at the end",
    apply="the mean with those heard becomes the weights; at the end everyone's mean",
    to="a few random others; at the end everyone (all-reduce)",
    combine="mean of those heard",
    compress="nothing",
    wire="budget x 4 bytes a parameter, once every K steps; at the end 2 (n-1)/n x 4 bytes a parameter",
    source="arXiv:2507.06542 (A Single Merging Suffices)",
)
def single_merge(
    budget: float = 0.2,
    every: int = 100,
    schedule: str = "fixed",
    horizon: int | None = None,
    peak: float | None = None,
    start: float = 0.9,
    window: float = 0.05,
    graph: str = "complete",
    overlap: int = 0,
    seed: int = 0,
    compress: Compress = None,
) -> Sync:
    """Single merging: hardly any gossip while training, and one mean of all workers' weights at the end.

    budget: others heard in a round, on average; every: K; schedule: of the budget, fixed, truncate, truncate_v2,
    linear, cosine, exponential or late; horizon: steps of the whole run, which schedules but fixed need; peak: the
    budget at its highest, none for everyone; start: share of the run at which truncate begins; window: share that
    truncate_v2 lasts; graph: among whose neighbours the others are drawn; overlap: steps that a round may take; seed:
    of the draws; compress: int8 or half, say, while training.
    """
    if horizon is None and schedule != "fixed":
        raise ConfigError(f"single-merge: schedule {schedule!r} follows the run; say how many steps it has, in horizon")
    rounds = None if horizon is None else max(1, horizon // every)
    inner = _compressor(compress, identity(), False)
    talk = neighbours(inner, budget, schedule, rounds, peak, start, window, graph, seed)
    return single_merge_sync(talk, every, overlap)


@method(
    "srrw",
    send="the weights, and how often each worker was visited",
    every="each step, or each E steps",
    apply="they are trained where they are",
    to="one neighbour in a graph, less likely one that was visited more",
    combine="nothing; at the end the mean of the tokens",
    compress="nothing",
    wire="4 bytes a parameter for each token in the whole network, once every E steps; at the end 2 (n-1)/n x 4",
    source="Doshi et al. 2023, arXiv:2305.05097; Hu et al. 2024, arXiv:2401.09665",
)
def srrw(
    graph: str = "ring",
    tokens: int = 1,
    every: int = 1,
    alpha: float = 5.0,
    memory: float = 0.8,
    cooling: float = 0.0,
    pseudo: float = 1.0,
    seed: int = 0,
    compress: Compress = None,
) -> Sync:
    """SA-SRRW: a model walks from worker to worker, is trained where it is, and avoids where it has been often.

    graph: as d-psgd's, both ways; tokens: models that walk at once; every: E, steps of a visit; alpha: how strongly it
    avoids, 0 for not at all; memory: the n-th visit weighs n^-memory; cooling: the learning rate falls as n^-cooling, 0
    for not at all; pseudo: visits that each worker has to begin with; seed: of the walk; compress: int8 or half, say.
    """
    return walk(_compressor(compress, identity(), False), graph, tokens, every, alpha, memory, cooling, pseudo, seed)


@method(
    "alone",
    send="nothing",
    every="never",
    apply="the inner optimizer's step",
    to="nobody",
    combine="nothing",
    compress="nothing",
    wire="nothing",
    source="the no-network ideal that comparisons are made against",
)
def alone() -> Sync:
    """Every worker trains by itself: what the machine could do if the network cost nothing."""
    return Sync(lambda params: (), equal=False, name="alone")

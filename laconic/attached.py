"""Hooks a sync onto an ordinary torch model and optimizer. The one place that writes to the model.

Parameters are dealt to buckets from the last to the first, as backward gets them ready. When a bucket's last gradient
is ready, and all buckets before it have left, its exchange starts on the link's lane, beside the rest of backward. The
order is the same on every worker, whatever order the gradients came in.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from laconic.compress import half, identity, int8, topk
from laconic.errors import ClashError, ConfigError, LaconicError, NotANumber, PacketError
from laconic.exchange import Exchange, everyone
from laconic.links import memory
from laconic.links.background import Handle
from laconic.links.base import Link
from laconic.methods import build
from laconic.packet import CODES, Packet
from laconic.parallel.shards import Shard, check_peers, local, local_state, norm, shard_of, whole, whole_state
from laconic.state import freeze, like, placed, thaw
from laconic.sync.base import Sync, Updates, among

FIRST_BUCKET = 1 << 20  # bytes; small, so that the first exchange starts early
BUCKET = 25 << 20
DECAY = 0.5  # a learning rate under this share of its highest since the last decay has decayed again
FORMAT = 1
FEW = 3  # workers among which an exchange does all that it does among many
HELD = "_laconic"  # where an optimizer keeps what steps it


@dataclass
class Bucket:
    """Parameters whose gradients leave together."""

    params: list[Tensor]
    names: list[str]
    state: Any
    pending: int = 0
    handle: Handle | None = None
    sent: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: str | Sync,
    link: Link | None = None,
    *,
    clip: float | None = None,
    bucket_bytes: int = BUCKET,
    **settings: Any,
) -> Attached:
    """Train ``model`` together with the other workers of ``link``, by ``method``.

    ``method`` is the name of one (``laconic methods`` lists them; ``settings`` change its defaults), a nesting, or the
    path of a recipe (``.toml``), of which method, settings, seed and clip are taken. Without a link, torchrun's
    environment gives one over torch's process group, and the recipe says what is known of the links if its workers are
    as many. ``clip`` bounds the norm of the gradient that the optimizer steps with. All workers start from rank 0's
    weights.

    In the loop: ``loss.backward()``, then ``sync.step()`` in the optimizer's place::

        sync = laconic.attach(model, optimizer, "diloco", link, every=100)
        for batch in batches:
            loss(model, batch).backward()
            sync.step()
            sync.zero_grad()

    Raises: ConfigError, ClashError: what cannot be trained so, each with a sentence.
    """
    recipe = None
    if isinstance(method, str) and method.endswith(".toml"):
        from laconic.recipe import read_recipe, seeded

        recipe = read_recipe(method)
        method, settings = recipe.method, seeded(recipe) | settings
        clip = recipe.clip if clip is None else clip
    sync = build(method, settings)
    if link is None:
        from laconic.links.process_group import process_group

        link = process_group()
        if recipe is not None:
            link.network = recipe.links_of(link.size)
    return Attached(model, optimizer, sync, link, clip=clip, bucket_bytes=bucket_bytes)


class Attached:
    """A model, its optimizer and a sync on a link; made by :func:`attach`.

    It steps like an optimizer and its :meth:`state_dict` resumes bit for bit, also with an exchange under way (each
    worker keeps its own).
    """

    _step_supports_amp_scaling = True  # so that a GradScaler tells step() its scale, and is refused in words

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sync: Sync,
        link: Link,
        *,
        clip: float | None = None,
        bucket_bytes: int = BUCKET,
    ) -> None:
        self.model, self.optimizer, self.sync, self.link, self.clip = model, optimizer, sync, link, clip
        named = _trainable(model, optimizer)
        _check_momentum(sync, optimizer)
        _check_explorer(sync, optimizer, clip)
        self.names, self.params = list(named), list(named.values())
        _rehearse(sync, self.params)
        among(sync, link.size)
        self.shard = shard_of(named)
        if self.shard is not None and sync.explore is not None:
            raise ClashError(f"attach: {sync.name} moves whole tensors, of which each process has a part; do not shard")
        if self.shard is not None and sync.whole:
            raise ClashError(
                f"attach: {sync.name} decides by the norm of the whole gradient, of which each process has a part, so "
                "that the parts would decide differently; use a method that decides for each tensor, or not at all"
            )
        if self.shard is not None and (sync.rounds is not None or sync.share is not None):
            raise ClashError(
                f"attach: {sync.name} deals work by measured speed, and the processes that share a model would each "
                "measure another; use a method whose workers all do the same"
            )
        link.in_turn(_same_start, named, sync, link, self.shard)
        held = (*model.named_parameters(), *model.named_buffers())
        link.in_turn(link.broadcast, [_as_sent(name, local(p).detach()) for name, p in held])
        self._state = (
            sync.init({n: local(p) for n, p in named.items()}) if sync.after_step or not sync.by_bucket else None
        )
        self._buckets = self._deal(bucket_bytes) if sync.after_backward and sync.by_bucket else []
        self._place = {p: bucket for bucket in self._buckets for p in bucket.params}
        self._next = 0
        self._paused = False
        self._synchronized = False
        self._held = False  # the sync has said "not yet": the optimizer does not step
        self._rates = self._rates_now()
        self._begun = False  # a backward has run since the last step: its gradients are in no checkpoint
        # A parameter that held this would be held by it, through torch, where no garbage collector looks. So the
        # optimizer does: whoever steps that and forgets to step this is told by the second backward pass.
        vars(optimizer)[HELD] = self
        weakly = weakref.WeakMethod(self._ready)
        self._hooks = [p.register_post_accumulate_grad_hook(partial(_tell, weakly)) for p in self.params]

    # -- the loop --------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> float | None:
        """Finish the gradients' exchange, step the optimizer, and do what the sync does after a step.

        A method without backward (``sync.explore``) takes a ``closure`` that returns the loss of this step's batch, and
        calls it several times: without gradients, in evaluation mode, each time with the same noise. The mean loss is
        returned.

        Raises: ConfigError for a closure or a GradScaler; NotANumber; PeerTimeout, PeerLost.
        """
        if self.sync.explore is not None:
            return self._explore(closure)
        if closure is not None:
            raise ConfigError("step: a closure would run backward several times a step; call backward before step()")
        if any(_scaled(each) for each in (self, self.optimizer)):
            raise ConfigError(
                "step: a GradScaler multiplies gradients by a changing scale, which residuals cannot follow; train in "
                "bfloat16 autocast, which needs no scaler"
            )
        self.synchronize()
        if not self._held:
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.params, self.clip)
            with self._scaled_rate():
                self.optimizer.step()
        self._synchronized = self._held = self._begun = False
        if self.sync.after_step is None:
            return None
        self._heed_rates()
        told = self._state
        if self.sync.learning is not None:
            told = self.sync.learning(told, max(self._rates_now()))
        with self._naming(self.names, self.params, "parameter"):
            updates, state = self.sync.after_step(self._here(), told, self.link)
        self._take(updates, state)
        if self.sync.forget is not None and self.sync.forget(self._state):
            self.optimizer.state.clear()
        return None

    def _explore(self, closure: Callable[[], Any] | None) -> float:
        assert self.sync.explore is not None
        if closure is None:
            raise ConfigError(
                f"step: {self.sync.name} looks at the loss itself, without backward; call "
                "step(lambda: loss(model, batch))"
            )
        rates = set(self._rates_now())
        if len(rates) > 1:
            raise ConfigError(f"step: {self.sync.name} has one learning rate, and the optimizer's groups have {rates}")
        told = self._state
        if self.sync.learning is not None:
            told = self.sync.learning(told, max(rates))
        with looking(self.model, self._here(), closure) as (loss_at, losses), torch.no_grad():
            updates, state = self.sync.explore(self._here(), told, self.link, loss_at)
        self._take(updates, state)
        return sum(losses) / max(1, len(losses))

    def record(self) -> Packet:
        """What a worker that was away needs to take the last steps by itself: a packet, to be written or sent.

        Raises: ConfigError for a method that keeps no such record.
        """
        if self.sync.record is None:
            raise ConfigError(f"record: {self.sync.name} keeps no record of its steps; save a checkpoint")
        return self.sync.record(self._state)

    def catch_up(self, record: Packet) -> None:
        """Take the steps that others took meanwhile, from their record; to the bit what they did.

        Raises: ConfigError for the record of another run, or one that begins later than this worker stopped;
                PacketError for a damaged one.
        """
        if self.sync.replay is None:
            raise ConfigError(f"catch_up: {self.sync.name} cannot take steps from a record; load a checkpoint")
        self._take(*self.sync.replay(self._here(), self._state, record))

    def finish(self) -> None:
        """Do what the method does once, after the last step: a last merge, or what is under way. All workers call it.

        Raises: as :meth:`step`.
        """
        if self.sync.finish is not None:
            with self._naming(self.names, self.params, "parameter"):
                self._take(*self.sync.finish(self._here(), self._state, self.link))
        self.drain()

    def _take(self, updates: Updates, state: Any) -> None:
        with torch.no_grad():  # only now, when nothing can fail any more
            for i, value in updates.items():
                local(self.params[i]).copy_(value)
        self._state = state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the optimizer's."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def synchronize(self) -> None:
        """Wait until each ``p.grad`` holds what the optimizer is to step with; for clipping by hand before step()."""
        if self.sync.after_backward is None or self._synchronized:
            return
        if self.sync.by_bucket:
            for bucket in self._buckets[self._next :]:
                self._launch(bucket)
            with self._naming(self.names, [p.grad for p in self.params], "gradient"):
                results = [bucket.handle.result() for bucket in self._buckets if bucket.handle]
            for bucket in self._buckets:
                self._untouched(bucket)
            for bucket, (grads, state) in zip(self._buckets, results, strict=True):
                assert grads is not None, "buckets that wait for one another cannot say 'not yet' alone"
                bucket.state = state
                _give(bucket.params, grads)
                bucket.handle, bucket.sent, bucket.versions = None, [], []
                bucket.pending = len(bucket.params)
            self._next = 0
        else:
            run = self.sync.after_backward
            self._heed_rates()
            with self._naming(self.names, [p.grad for p in self.params], "gradient"):
                grads, self._state = self.link.start(run, self._clipped(), self._state, self.link).result()
            self._held = grads is None
            if grads is not None:
                _give(self.params, grads)
        self._synchronized = True

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate: gradients of backwards inside stay here, and leave with the next backward outside.

        Raises: ConfigError for a method without backward.
        """
        if self.sync.explore is not None:
            raise ConfigError(f"no_sync: {self.sync.name} takes no gradients, so none can be summed; use more samples")
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, to set a learning rate in."""
        return self.optimizer.param_groups

    @property
    def rounds(self) -> int:
        """How many rounds have ended, where workers take unequal numbers of steps: the same for all when they end.

        Raises: ConfigError for a method whose workers all take the same steps.
        """
        if self.sync.rounds is None:
            raise ConfigError(f"rounds: by {self.sync.name} all workers take the same steps; count those")
        return self.sync.rounds(self._state)

    @property
    def taken(self) -> float:
        """How many steps workers have taken on average, where they take unequal numbers.

        At the end of a round it is the same on all. Raises: ConfigError for a method whose workers all take the same.
        """
        if self.sync.taken is None:
            raise ConfigError(f"taken: by {self.sync.name} all workers take the same steps; count those")
        return self.sync.taken(self._state)

    @property
    def share(self) -> float:
        """How much of an ordinary batch the next one is to be: 1, but where a method deals batches by speed."""
        return 1.0 if self.sync.share is None else self.sync.share(self._state)

    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to ship, by name: the shared ones where the method has them, else the model's."""
        values = self._here() if self.sync.model is None else self.sync.model(self._here(), self._state)
        both = zip(self.names, self.params, values, strict=True)
        return {name: whole(value.detach().to(p.dtype), p) for name, p, value in both}

    def drain(self) -> None:
        """Wait for everything under way, so that the link may be closed. All workers call it."""
        if self.sync.ended is not None:
            self._take(*self.sync.ended(self._here(), self._state, self.link))
        self.link.start(lambda: None).result()

    def detach(self) -> None:
        """Drain, and leave the model as an ordinary one."""
        self.drain()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        vars(self.optimizer).pop(HELD, None)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the sync's, of this worker; with the model's own it resumes bit for bit.

        Tensors are not copied. Raises: ConfigError between backward and step().
        """
        if self._begun:
            raise ConfigError("state_dict: gradients are under way; call it after step(), not between backward and it")
        parts = {"sync": self._state, "buckets": [bucket.state for bucket in self._buckets]}
        skeleton, tensors = freeze(parts)
        return {
            "format": FORMAT,
            "method": self.sync.name,
            "rank": self.link.rank,
            "size": self.link.size,
            "rates": self._rates,
            "shard": None if self.shard is None else self.shard.digest,
            "stepping": self._stepping(),
            "optimizer": local_state(self.optimizer.state_dict()),
            "skeleton": skeleton,
            "tensors": tensors,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left off.

        Raises: ConfigError for the state of another method, worker or model; PacketError for one that is damaged.
        """
        here = {"format": FORMAT, "method": self.sync.name, "rank": self.link.rank, "size": self.link.size}
        here["shard"] = None if self.shard is None else self.shard.digest
        here["stepping"] = self._stepping()
        for key, value in here.items():
            if saved.get(key) != value:
                raise ConfigError(f"load_state_dict: the saved {key} is {saved.get(key)!r}, here it is {value!r}")
        tensors = {name: t.clone() for name, t in saved["tensors"].items()}
        parts = thaw(saved["skeleton"], tensors)
        if not isinstance(parts, dict) or set(parts) != {"sync", "buckets"}:
            raise PacketError("load_state_dict: the saved state has no parts 'sync' and 'buckets'")
        old, new = [self._state, [b.state for b in self._buckets]], [parts["sync"], parts["buckets"]]
        like(old, new)
        state, buckets = placed(old, new, local(self.params[0]).device)
        order = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.load_state_dict(whole_state(saved["optimizer"], order))
        rates = saved.get("rates")
        known = isinstance(rates, list) and len(rates) == len(self.optimizer.param_groups)
        self._rates = [float(rate) for rate in rates] if known else self._rates_now()  # type: ignore[union-attr]
        self._state = state
        for bucket, own in zip(self._buckets, buckets, strict=True):
            bucket.state = own

    def _stepping(self) -> str:
        """The optimizer's kind and groups, whose state fits no other."""
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        return f"{type(self.optimizer).__name__} of {sizes} parameters"

    # -- learning rates --------------------------------------------------------------------------------------

    def _rates_now(self) -> list[float]:
        return [float(group.get("lr", 0.0)) for group in self.optimizer.param_groups]

    def _heed_rates(self) -> None:
        """Tell the sync once a group's learning rate is under half of its highest since the last such decay."""
        rates = self._rates_now()
        if len(rates) != len(self._rates):
            self._rates = rates  # groups were added
        if not any(now < DECAY * high for now, high in zip(rates, self._rates, strict=True)):
            self._rates = [max(now, high) for now, high in zip(rates, self._rates, strict=True)]
            return
        self._rates = rates
        if self.sync.decayed is not None:
            self._state = None if self._state is None else self.sync.decayed(self._state)
            for bucket in self._buckets:
                bucket.state = self.sync.decayed(bucket.state)

    @contextmanager
    def _scaled_rate(self) -> Iterator[None]:
        """Multiply the learning rates by what the sync says, for one step; a schedule never sees it."""
        scale = 1.0 if self.sync.rate is None else self.sync.rate(self._state)
        own: list[Any] = [group.get("lr") for group in self.optimizer.param_groups]
        if scale == 1.0:
            yield
            return
        for group, rate in zip(self.optimizer.param_groups, own, strict=True):
            group["lr"] = rate * scale
        try:
            yield
        finally:
            for group, rate in zip(self.optimizer.param_groups, own, strict=True):
                group["lr"] = rate

    def _here(self) -> list[Tensor]:
        """The parameters, of a sharded one the part that is here."""
        return [local(p) for p in self.params]

    def _clipped(self) -> list[Tensor]:
        """The gradients to exchange, clipped where the sync would clip by the norm of the part that is here."""
        grads = _grads(self.params)
        if self.shard is None or self.sync.clip is None:
            return grads
        bound = self.sync.clip * math.sqrt(self.link.size)
        scale = (bound / (norm(p.grad for p in self.params if p.grad is not None) + 1e-12)).clamp(max=1.0)
        return [g * scale for g in grads]

    @contextmanager
    def _naming(self, names: list[str], tensors: Sequence[Tensor | None], what: str) -> Iterator[None]:
        """Say which worker's which tensor a compressor found not to be finite."""
        try:
            yield
        except NotANumber as error:
            pairs = zip(names, tensors, strict=True)
            bad = next((n for n, t in pairs if t is not None and not bool(torch.isfinite(local(t)).all())), None)
            where = f"{what} {bad} is not finite ({error})" if bad else f"every {what} is finite, but {error}"
            raise NotANumber(f"worker {self.link.rank}: {where}") from error

    # -- buckets ---------------------------------------------------------------------------------------------

    def _deal(self, nbytes: int) -> list[Bucket]:
        buckets: list[Bucket] = []
        names: list[str] = []
        params: list[Tensor] = []
        size, room = 0, min(FIRST_BUCKET, nbytes)
        for name, param in reversed(list(zip(self.names, self.params, strict=True))):
            names.append(name)
            params.append(param)
            size += local(param).numel() * param.element_size()
            if size >= room:
                buckets.append(self._bucket(params, names))
                names, params, size, room = [], [], 0, nbytes
        if params:
            buckets.append(self._bucket(params, names))
        return buckets

    def _bucket(self, params: list[Tensor], names: list[str]) -> Bucket:
        state = self.sync.init({n: local(p) for n, p in zip(names, params, strict=True)})
        return Bucket(params, names, state, pending=len(params))

    def _ready(self, param: Tensor) -> None:
        if param.grad is not None and param.grad.is_sparse:
            raise ConfigError("sparse gradients cannot be exchanged; build the embedding with sparse=False")
        self._begun = True
        if self._paused or self.sync.after_backward is None or not self.sync.by_bucket:
            self._synchronized = False
            return
        bucket = self._place[param]
        if bucket.handle is not None or bucket.pending == 0:
            raise ConfigError(
                "backward ran twice before step(), and the gradients of the first have left; run all but the last "
                "inside `with sync.no_sync():`"
            )
        self._synchronized = False
        bucket.pending -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].pending == 0:
            self._launch(self._buckets[self._next])
            self._next += 1

    def _launch(self, bucket: Bucket) -> None:
        assert self.sync.after_backward is not None
        if bucket is self._buckets[0]:  # none of this step has left yet
            self._heed_rates()
        grads = _grads(bucket.params)
        if grads[0].is_cuda:  # FSDP calls hooks on a stream of its own; the lane works on the device's default one
            torch.cuda.default_stream(grads[0].device).wait_stream(torch.cuda.current_stream(grads[0].device))
        bucket.sent = [p.grad for p in bucket.params if p.grad is not None]
        bucket.versions = [g._version for g in bucket.sent]
        bucket.handle = self.link.start(self.sync.after_backward, grads, bucket.state, self.link)

    def _untouched(self, bucket: Bucket) -> None:
        grads = [p.grad for p in bucket.params if p.grad is not None]
        replaced = len(grads) != len(bucket.sent) or any(a is not b for a, b in zip(grads, bucket.sent, strict=True))
        if replaced or [g._version for g in grads] != bucket.versions:
            raise ConfigError(
                "gradients were changed between backward and step() (clipped?) after they had left; call "
                "sync.synchronize() first, or give attach(clip=...)"
            )


def _grads(params: list[Tensor]) -> list[Tensor]:
    """Gradients to exchange; zeros for a parameter that this worker did not use, which others may have."""
    return [torch.zeros_like(local(p)) if p.grad is None else local(p.grad.detach()) for p in params]


def _give(params: list[Tensor], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = whole(grad.to(param.dtype), param)


def _trainable(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    if type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
        raise ClashError(f"attach: the model is wrapped in {type(model).__name__} already; give attach the plain model")
    mine = {p for group in optimizer.param_groups for p in group["params"]}
    named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad and p in mine}
    if not named:
        raise ConfigError("attach: the optimizer holds none of the model's trainable parameters")
    strangers = len(mine - set(model.parameters()))
    if strangers:
        raise ConfigError(f"attach: the optimizer holds {strangers} tensors that are not the model's parameters")
    for name, p in named.items():
        if not p.is_floating_point() or p.layout != torch.strided:
            raise ConfigError(f"attach: parameter {name} is {type(p.data).__name__} of {p.dtype}, wanted dense floats")
    return named


def _scaled(optimizer: Any) -> bool:
    """Whether a GradScaler has told this optimizer its scale; forgets it, since who is refused does not clear up."""
    told = [vars(optimizer).pop(name, None) for name in ("grad_scale", "found_inf")]
    return any(value is not None for value in told)


def _check_momentum(sync: Sync, optimizer: torch.optim.Optimizer) -> None:
    if not sync.momentum:
        return
    for group in optimizer.param_groups:
        if group.get("momentum") or (group.get("betas") or (0.0,))[0]:
            raise ClashError(
                f"attach: {sync.name} carries momentum itself, and the optimizer would add its own; build it with "
                "momentum=0 (SGD) or betas=(0, ...) (Adam)"
            )


def _check_explorer(sync: Sync, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
    """Refuse what would do nothing beside a method that takes its steps itself."""
    if sync.explore is None:
        return
    plain = type(optimizer) is torch.optim.SGD and not any(
        group["momentum"] or group["weight_decay"] or group["maximize"] for group in optimizer.param_groups
    )
    if not plain:
        raise ClashError(
            f"attach: {sync.name} takes its steps itself, by the learning rate alone: there is no gradient that "
            f"{type(optimizer).__name__} could average, scale or decay; build it with torch.optim.SGD(params, lr)"
        )
    if clip is not None:
        raise ClashError(f"attach: {sync.name} has no gradient whose norm clip={clip:g} could bound; set most= instead")


@contextmanager
def looking(
    model: nn.Module, params: Sequence[Tensor], closure: Callable[[], Any]
) -> Iterator[tuple[Callable[[Iterable[Tensor]], float], list[float]]]:
    """The function ``loss_at(values)`` and the list of the losses it has found.

    The model is in evaluation mode inside. After each look the parameters are put back from a copy, so that no rounding
    adds up; the generators are set back before it, so that all looks of a step see the same noise.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = params[0].device
    noise = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    losses: list[float] = []

    @torch.no_grad()
    def loss_at(values: Iterable[Tensor]) -> float:
        kept = [p.clone() for p in params]
        torch.set_rng_state(noise[0])
        if noise[1] is not None:
            torch.cuda.set_rng_state(noise[1], device)
        try:
            for p, value in zip(params, values, strict=True):
                p.copy_(value)
            losses.append(float(closure()))
        finally:
            for p, value in zip(params, kept, strict=True):
                p.copy_(value)
        return losses[-1]

    model.eval()
    try:
        yield loss_at, losses
    finally:
        for module, training in modes:
            module.training = training


def _tell(ready: Callable[[], Callable[[Tensor], None] | None], param: Tensor) -> None:
    if (told := ready()) is not None:
        told(param)


def _rehearse(sync: Sync, params: Sequence[Tensor]) -> None:
    """Run the exchange once for each dtype and device, alone and on little: what cannot work there is refused now."""
    if sync.exchange is None:
        return
    for dtype, device in _kinds(sync, params):
        try:
            _once(sync.exchange, dtype, device)
        except ClashError:
            continue  # about the tensors' sizes, of which ``init`` sees the real ones
        except Exception as error:  # whatever a compressor, or what it stands on, raises where it cannot run
            others = [everyone(compressor()) for compressor in (int8, half, topk, identity)]
            works = next((e.name for e in others if _works(e, dtype, device)), "nothing")
            raise ClashError(
                f"attach: {sync.exchange.name} cannot work on {dtype} on {device}: {error}; {works} can"
            ) from error


def warm_up(sync: Sync, params: Sequence[Tensor], workers: int) -> None:
    """Run the exchange on little among a few of so many workers, so that training need not stop to compile its loops.

    What it refuses is told elsewhere, where all of the workers and the tensors are known.
    """
    if sync.exchange is None or workers < 2:
        return
    for dtype, device in _kinds(sync, params):
        with contextlib.suppress(LaconicError):
            _once(sync.exchange, dtype, device, min(workers, FEW))


def _kinds(sync: Sync, params: Sequence[Tensor]) -> list[tuple[torch.dtype, torch.device]]:
    """The dtypes and devices of what a sync exchanges: gradients as they are, weights in at least float32."""
    found = {
        (p.dtype if sync.after_backward else torch.promote_types(p.dtype, torch.float32), p.device) for p in params
    }
    return sorted(found, key=str)


def _once(exchange: Exchange, dtype: torch.dtype, device: torch.device, workers: int = 1) -> None:
    def work(link: Link) -> None:
        little = [torch.ones(shape, dtype=dtype, device=device) for shape in ((256, 256), (64,))]
        state = exchange.init(little)
        for _ in range(1 if workers == 1 else 2):  # what is owed from the first round is in the second
            _, state = exchange.run(little, state, link)

    if workers > 1:
        memory.run(workers, work)
    else:
        with memory.alone() as link:
            work(link)


def _works(exchange: Exchange, dtype: torch.dtype, device: torch.device) -> bool:
    try:
        _once(exchange, dtype, device)
    except Exception:
        return False
    return True


def _same_start(named: dict[str, Tensor], sync: Sync, link: Link, shard: Shard | None) -> None:
    shapes = [f"{name} {p.dtype} {list(p.shape)}" for name, p in named.items()]
    print_ = hashlib.sha256("\n".join(shapes).encode()).hexdigest()
    mine: dict[str, Any] = {"model": print_, "parameters": len(shapes), "method": sync.name}
    if shard is not None:
        mine |= {"shard": shard.digest, "global": shard.rank}
    heard = link.all_gather([Packet({}, mine)])
    for rank, message in enumerate(heard):
        if message[0].header.get("model") != print_:
            raise ConfigError(
                f"attach: worker {rank} has another model than worker {link.rank} "
                f"({message[0].header.get('parameters')} parameters there, {len(shapes)} here); build all alike"
            )
        if message[0].header.get("method") != sync.name:
            raise ConfigError(
                f"attach: worker {rank} trains by {message[0].header.get('method')}, worker {link.rank} by {sync.name}"
            )
    check_peers(shard, [message[0].header for message in heard], link.rank)


def _as_sent(name: str, tensor: Tensor) -> Tensor:
    """The tensor, or a view of its bytes where the wire has no code for its dtype: a complex buffer, say."""
    if tensor.dtype in CODES:
        return tensor
    if not tensor.is_contiguous():
        raise ConfigError(
            f"attach: {name} is {tensor.dtype} and not contiguous, so it cannot be sent; make it contiguous"
        )
    return tensor.view(-1).view(torch.uint8)


def nan_check(loss: float, rank: int, step: int, model: nn.Module) -> None:
    """Refuse a loss that is NaN or infinite, naming the worker, the step and the first parameter that is not finite.

    Raises: NotANumber.
    """
    if loss - loss == 0:
        return
    bad = next((n for n, p in model.named_parameters() if not bool(torch.isfinite(local(p)).all())), None)
    where = f"parameter {bad} is not finite" if bad else "all parameters are finite: look at the batch or the loss"
    raise NotANumber(f"worker {rank}, step {step}: the loss is {loss}; {where}. A smaller learning rate may help")

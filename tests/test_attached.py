"""A method hooked onto an ordinary loop: what it trains, what it saves, and what it refuses."""

import gc
import io
import math
import warnings
import weakref

import pytest
import torch
from torch import nn

from laconic import METHODS, attach
from laconic.attached import nan_check
from laconic.compress import identity
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError, PeerLost
from laconic.exchange import everyone
from laconic.links import memory
from laconic.methods import build
from laconic.packet import Packet
from laconic.state import freeze
from laconic.sync import Sync, diloco, every_step
from tests.tiny import batch, close, digest, equal, loss, model, seeded, sgd, step, together, weights

SMALL = {
    "topk": {"density": 0.1},
    "dgc": {"density": 0.05, "warmup_steps": 4},
    "ef21": {"density": 0.1},
    "econtrol": {"density": 0.1},
    "powersgd": {"rank": 1, "min_rate": 1.0},
    "accordion": {"light": 0.5, "heavy": 0.1, "every": 3},
    "adaptive": {"grid": [0.1, 0.3], "every": 1000},  # never measured: two runs would choose different levels
    "local-sgd": {"every": 3},
    "diloco": {"every": 3},
    "streaming-diloco": {"every": 6, "fragments": 3, "overlap": 1},
    "uneven-diloco": {"every": 3, "least": 3, "most": 3},  # what is measured differs from run to run
    "uneven-ddp": {"parts": 1},
    "hcef": {"least_steps": 3, "most_steps": 3, "least_density": 0.5, "most_density": 0.5},
    "noloco": {"every": 2},
    "single-merge": {"every": 2, "budget": 0.5},
    "slowmo": {"every": 3},
    "co2": {"every": 2},
    "post-local-sgd": {"start": 5, "every": 3},
    "just-one-byte": {"samples": 16},
    "modest": {"every": 3},
}
VARIANTS = [(name, SMALL.get(name, {})) for name in METHODS]
VARIANTS += [
    ("ddp-half", {"kind": "bf16"}),
    ("dgc", {"clip": None, "compress": "random_k(0.1)"}),
    ("topk", {"compress": ["topk(0.2)", "int8"]}),
    ("accordion", {"kind": "powersgd", "every": 3, "eta": 0.2}),
    ("accordion", {"kind": "batch", "heavy": 2, "every": 4, "eta": 0.2, "scale_lr": True}),
    ("ef21", {"density": 0.1, "a": 0.5, "start": "dense"}),
    ("econtrol", {"compress": ["topk(0.3)", "int8"], "eta": 0.1, "start": "dense"}),
    ("diloco", {"every": 3, "compress": "int8"}),
    ("ddp", {"compress": "int8"}),
    ("signsgd", {"feedback": True}),
    ("diloco", {"every": 3, "compress": "ef21(topk(0.4))"}),
    ("local-sgd", {"every": 3, "compress": "econtrol(topk(0.4))", "feedback": False}),
    ("streaming-diloco", {"every": 6, "fragments": 2, "overlap": 2, "compress": "ef21(topk(0.5))"}),
    ("streaming-diloco", {"every": 6, "fragments": 1, "overlap": 4, "compress": "topk(0.3)", "feedback": True}),
    ("noloco", {"every": 2, "mixing": 0.5, "compress": "half"}),
    ("d-psgd", {"graph": "complete", "overlap": 0}),
    ("d-psgd", {"graph": "one-peer", "every": 3, "overlap": 2, "compress": "half"}),
    ("sgp", {"overlap": 1, "late": 1}),
    ("sgp", {"patience": 30.0}),
    ("single-merge", {"every": 2, "schedule": "late", "horizon": 24}),
    ("srrw", {"every": 2, "compress": "half"}),
    ("noloco", {"every": 4, "fragments": 2, "overlap": 3, "own": 0.0, "seed": 3}),
    ("diloco", {"every": 4, "fragments": 2, "overlap": 3, "mixing": 0.3, "warmup_rounds": 3, "compress": "int8"}),
    ("diloco", {"every": 4, "overlap": 4, "lr": 0.4, "momentum": 0.3, "eager": True}),
    ("streaming-diloco", {"every": 4, "fragments": 2, "overlap": 4, "mixing": 0.0, "lr": 0.3, "momentum": 0.3}),
    ("local-sgd", {"every": 3, "overlap": 1}),
    ("slowmo", {"every": 3, "inner": "reset", "compress": "topk(0.4)", "feedback": True}),
    ("slowmo", {"every": 4, "fragments": 3, "overlap": 2, "pattern": "sequential"}),
    ("co2", {"every": 4, "gap": 2.0, "momentum": 0.1, "clip": 5.0, "compress": "half"}),
    ("co2", {"every": 4, "fragments": 2}),
    ("post-local-sgd", {"start": 5, "every": 3, "overlap": 2, "compress": "topk(0.4)"}),
    ("post-local-sgd", {"start": 0, "every": 3}),
    ("ddp", {"combine": "weighted_mean(3.0)"}),
    ("just-one-byte", {"samples": 16, "directions": "rademacher", "most": 50.0, "keep": 2}),
    ("modest", {"every": 2, "aggregators": 1, "compress": "half"}),
]
variants = pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=[f"{n} {s}" for n, s in VARIANTS])


@pytest.mark.parametrize("workers", [1, 2, 3])
@variants
def test_every_method_trains_and_ends_equal_to_the_bit_where_it_says_so(name, settings, workers):
    def go(sync, net):
        return float(loss(net, batch(99, 99, rows=64))), digest(sync.weights().values()), digest(weights(net))

    seen = together(workers, name, 24, each=go, **settings)
    assert all(worker[-1][0] < worker[0][0] - 0.05 for worker in seen), "it learns"
    sync = build(name, settings)
    if sync.equal:
        assert len({worker[-1][1] for worker in seen}) == 1
        if sync.after_backward is not None and sync.after_step is None:
            assert all(len({worker[i][2] for worker in seen}) == 1 for i in range(24))


@pytest.mark.parametrize("workers", [2, 3])
def test_ddp_is_training_alone_on_all_the_batches_together(workers):
    net = model()
    optimizer = sgd(net, momentum=0.9, weight_decay=0.01)
    for number in range(6):
        parts = [batch(w, number) for w in range(workers)]
        optimizer.zero_grad()
        loss(net, tuple(torch.cat(columns) for columns in zip(*parts, strict=True))).backward()
        optimizer.step()
    got = together(workers, "ddp", optimizer=lambda net: sgd(net, momentum=0.9, weight_decay=0.01))
    for worker in got:
        close(worker, weights(net))


def test_uneven_batches_with_their_sizes_as_weights_are_the_batches_together():
    rows = [3, 11]
    net = model()
    parts = [batch(w, 0, rows=rows[w]) for w in range(2)]
    loss(net, tuple(torch.cat(columns) for columns in zip(*parts, strict=True))).backward()

    def work(link):
        mine = model()
        sync = attach(mine, sgd(mine), "ddp", link, combine=f"weighted_mean({rows[link.rank]})")
        loss(mine, parts[link.rank]).backward()
        sync.synchronize()
        return [p.grad for p in mine.parameters()]

    for got in memory.run(2, work):
        close(got, [p.grad for p in net.parameters()])


@pytest.mark.parametrize(
    ("name", "settings"),
    [v for v in VARIANTS if build(*v).after_backward and v[0] != "powersgd"] + [("powersgd", SMALL["powersgd"])],
)
def test_the_size_of_the_buckets_changes_nothing(name, settings):
    """Up to rounding: a ring adds in another order where a bucket is cut elsewhere."""
    runs = [together(3, name, bucket_bytes=size, **settings)[0] for size in (1, 300, 1 << 20)]
    for other in runs[1:]:
        close(other, runs[0], 5e-3 if name == "ddp-half" else 1e-9)


# -- checkpoints -------------------------------------------------------------------------------------------------


def resumed(name, settings, before, after, workers=3):
    """Weights after before + after steps: in one go, and saved, written, read and resumed in between."""
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.99))  # noqa: E731
    if build(name, settings).explore is not None:
        adam = sgd  # it steps by itself, and refuses what would do nothing

    def first(link):
        net = model()
        sync = attach(net, adam(net), name, link, **settings)
        for number in range(before):
            step(net, sync, link.rank, number)
        file = io.BytesIO()
        torch.save({"model": net.state_dict(), "sync": sync.state_dict()}, file)
        for number in range(before, before + after):
            step(net, sync, link.rank, number)
        sync.drain()
        return file.getvalue(), [*weights(net), *sync.weights().values()]

    saved = memory.run(workers, first)

    def second(link):
        net = model(seed=5)
        sync = attach(net, adam(net), name, link, **settings)
        state = torch.load(io.BytesIO(saved[link.rank][0]), weights_only=True)
        net.load_state_dict(state["model"])
        sync.load_state_dict(state["sync"])
        for number in range(before, before + after):
            step(net, sync, link.rank, number)
        sync.drain()
        return [*weights(net), *sync.weights().values()]

    return [result for _, result in saved], memory.run(workers, second)


@variants
@pytest.mark.parametrize("before", [3, 4])
def test_a_run_resumed_from_a_written_state_is_the_run_that_never_stopped_bit_for_bit(name, settings, before):
    straight, again = resumed(name, settings, before, 7)
    for one, other in zip(straight, again, strict=True):
        assert equal(one, other)


@pytest.mark.parametrize("before", range(1, 14))
def test_streaming_resumes_from_every_step_also_with_a_flight_under_way(before):
    settings = {"every": 6, "fragments": 2, "overlap": 2}
    straight, again = resumed("streaming-diloco", settings, before, 8, workers=2)
    for one, other in zip(straight, again, strict=True):
        assert equal(one, other)


def test_a_flight_under_way_is_in_the_saved_state():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "streaming-diloco", link, every=4, fragments=1, overlap=3)
        held = []
        for number in range(8):
            step(net, sync, link.rank, number)
            held.append(any(".flight." in name for name in sync.state_dict()["tensors"]))
        return held

    assert memory.run(2, work)[0] == [False, False, False, True, True, True, False, True]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("method", "other", "the saved method is 'other'"),
        ("rank", 1, "the saved rank is 1"),
        ("size", 3, "the saved size is 3"),
        ("format", 0, "format"),
    ],
)
def test_the_state_of_another_method_or_worker_is_refused(key, value, says):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "diloco", link)
        with pytest.raises(ConfigError, match=says):
            sync.load_state_dict(sync.state_dict() | {key: value})

    memory.run(1, work)


def test_the_state_of_another_optimizer_is_refused():
    def work(link):
        saved = attach(net := model(), sgd(net), "diloco", link).state_dict()
        adam = lambda net: torch.optim.AdamW(net.parameters())  # noqa: E731
        halves = lambda net: torch.optim.SGD([{"params": [p]} for p in net.parameters()], lr=0.1)  # noqa: E731
        for other, says in ((adam, "here it is 'AdamW of"), (halves, "SGD of \\[1, 1")):
            with pytest.raises(ConfigError, match=says):
                attach(net := model(), other(net), "diloco", link).load_state_dict(saved)

    memory.run(1, work)


def test_a_buffer_that_the_wire_has_no_code_for_is_sent_as_its_bytes():
    def work(link):
        net = model()
        net.register_buffer("turns", torch.full((2, 3), link.rank + 1j))
        net.register_buffer("one", torch.tensor(link.rank, dtype=torch.uint16))
        attach(net, sgd(net), "ddp", link)
        return net.turns, net.one

    for turns, one in memory.run(2, work):
        assert torch.equal(turns, torch.full((2, 3), 1j))
        assert int(one) == 0


def test_a_recipe_gives_its_clip_and_its_seed_too(tmp_path):
    (tmp_path / "r.toml").write_text('workload = "adult"\nmethod = "noloco"\nclip = 0.5\nseed = 7\n')

    def work(link):
        sync = attach(net := model(), sgd(net), str(tmp_path / "r.toml"), link)
        own = attach(net := model(), sgd(net), str(tmp_path / "r.toml"), link, clip=2.0)
        return sync.clip, own.clip, sync.sync.name == build("noloco", {"seed": 7}).name

    assert memory.run(1, work) == [(0.5, 2.0, True)]


def test_a_damaged_state_is_refused_and_nothing_has_changed():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "diloco", link, every=2)
        for number in range(3):
            step(net, sync, 0, number)
        good = sync.state_dict()
        before = digest(good["tensors"].values())
        name = next(iter(good["tensors"]))
        for damage in (
            {"skeleton": {"value": 1}},
            {"skeleton": {"kind": "Path", "fields": {}}},
            {"skeleton": None},
            {"tensors": {}},
            {"tensors": good["tensors"] | {name: torch.zeros(1)}},
            {"tensors": good["tensors"] | {name: good["tensors"][name].float()}},
        ):
            with pytest.raises(PacketError):
                sync.load_state_dict(good | damage)
            assert digest(sync.state_dict()["tensors"].values()) == before
        sync.load_state_dict(good)

    memory.run(1, work)


def test_a_state_asked_for_between_backward_and_step_is_refused():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        loss(net, batch(link.rank, 0)).backward()
        with pytest.raises(ConfigError, match="call it after step"):
            sync.state_dict()
        sync.step()
        sync.state_dict()

    memory.run(2, work)


# -- the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddp", "powersgd", "dgc"])
def test_gradients_accumulated_inside_no_sync_leave_with_the_last_backward(name):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), name, link, **SMALL.get(name, {}))
        with sync.no_sync():
            for part in range(2):
                (loss(net, batch(link.rank, part)) / 3).backward()
        before = link.meter.bytes_out
        (loss(net, batch(link.rank, 2)) / 3).backward()
        sync.step()
        return weights(net), link.meter.bytes_out > before

    def at_once(link):
        net = model()
        sync = attach(net, sgd(net), name, link, **SMALL.get(name, {}))
        (sum(loss(net, batch(link.rank, part)) for part in range(3)) / 3).backward()
        sync.step()
        return weights(net), True

    for one, other in zip(memory.run(2, work), memory.run(2, at_once), strict=True):
        close(one[0], other[0])
        assert one[1]


def test_inside_no_sync_nothing_leaves_and_a_step_right_after_sends_it():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        before = link.meter.bytes_out
        with sync.no_sync():
            loss(net, batch(link.rank, 0)).backward()
        quiet = link.meter.bytes_out == before
        sync.step()
        return quiet, digest(weights(net))

    got = memory.run(2, work)
    assert got[0] == got[1]
    assert got[0][0]


@pytest.mark.parametrize("name", ["ddp", "topk", "diloco"])
def test_clip_bounds_the_norm_of_the_gradient_that_is_stepped_with(name):
    def work(link, by_hand):
        net = model()
        sync = attach(net, sgd(net), name, link, clip=None if by_hand else 0.01, **SMALL.get(name, {}))
        for number in range(4):
            loss(net, batch(link.rank, number)).backward()
            if by_hand:
                sync.synchronize()
                nn.utils.clip_grad_norm_(net.parameters(), 0.01)
            sync.step()
            norm = torch.cat([p.grad.reshape(-1) for p in net.parameters()]).norm()
            assert float(norm) <= 0.01 * (1 + 1e-6)
            sync.zero_grad()
        return weights(net)

    one, other = (memory.run(2, lambda link, b=by_hand: work(link, b)) for by_hand in (False, True))
    for a, b in zip(one, other, strict=True):
        assert equal(a, b)


def test_gradients_changed_after_they_left_are_refused():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        loss(net, batch(link.rank, 0)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        with pytest.raises(ConfigError, match=r"call sync\.synchronize\(\) first"):
            sync.step()
        return True

    assert memory.run(2, work) == [True, True]


def test_a_second_backward_before_step_is_refused_with_the_way_to_accumulate():
    def work(link):
        net = model()
        optimizer = sgd(net)
        attach(net, optimizer, "ddp", link)  # what it returns is thrown away, and optimizer.step() is called
        loss(net, batch(link.rank, 0)).backward()
        optimizer.step()
        gc.collect()
        with pytest.raises(ConfigError, match=r"with sync\.no_sync\(\)"):
            loss(net, batch(link.rank, 1)).backward()
        return True

    assert memory.run(2, work) == [True, True]


class Odd(nn.Module):
    """A frozen part, a part that only some workers use, a part that nobody uses, and two names for one weight."""

    def __init__(self, used):
        super().__init__()
        self.frozen = nn.Linear(6, 8, dtype=torch.float64).requires_grad_(False)
        self.some = nn.Linear(8, 8, dtype=torch.float64)
        self.nobody = nn.Linear(8, 8, dtype=torch.float64)
        self.one = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        self.two = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        self.two.weight = self.one.weight
        self.register_buffer("count", torch.tensor(3))
        self.used = used

    def forward(self, x):
        h = self.frozen(x).tanh()
        h = h + self.some(h) if self.used else h
        return self.two(self.one(h).tanh())[:, :3]


@pytest.mark.parametrize("name", [n for n in METHODS if n != "alone"])
@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
def test_frozen_unused_and_tied_parameters_are_trained_where_they_should_be(name, bucket_bytes):
    def work(link):
        net = seeded(Odd(used=link.rank == 0), link.rank)
        trained = [p for p in net.parameters() if p.requires_grad]
        sync = attach(
            net, torch.optim.SGD(trained, lr=0.1), name, link, bucket_bytes=bucket_bytes, **SMALL.get(name, {})
        )
        start = {n: p.detach().clone() for n, p in net.named_parameters()}
        for number in range(12):
            step(net, sync, link.rank, number)
        sync.drain()
        moved = {n for n, p in net.named_parameters() if not torch.equal(p, start[n])}
        assert net.one.weight is net.two.weight
        return moved, digest(sync.weights().values()), set(sync.weights())

    first, second = memory.run(2, work)
    assert {"some.weight", "one.weight"} <= first[0]
    still = {"frozen.weight", "frozen.bias"}
    if build(name, SMALL.get(name, {})).explore is None:  # without backward nobody knows what is not used
        still |= {"nobody.weight", "nobody.bias"}
    assert not still & (first[0] | second[0])
    assert "one.weight" in first[2]
    assert "two.weight" not in first[2]
    if build(name, SMALL.get(name, {})).equal:
        assert first[1] == second[1]
        assert "some.weight" in second[0], "a worker that does not use it learns it from one that does"


@pytest.mark.parametrize("name", [n for n in METHODS if n != "alone"])
def test_parameters_of_several_dtypes_train_together(name):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            dtypes = (torch.float32, torch.float64, torch.bfloat16)
            self.layers = nn.ModuleList(nn.Linear(6 if i == 0 else 8, 8, dtype=d) for i, d in enumerate(dtypes))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x.to(layer.weight.dtype)).tanh()
            return x[:, :3].double()

    def work(link):
        net = seeded(Mixed())
        sync = attach(net, sgd(net), name, link, **SMALL.get(name, {}))
        for number in range(8):
            step(net, sync, link.rank, number)
        sync.drain()
        return (
            [p.dtype for p in net.parameters()],
            digest(sync.weights().values()),
            all(bool(torch.isfinite(p).all()) for p in net.parameters()),
        )

    got = memory.run(2, work)
    assert got[0][0] == [d for d in (torch.float32, torch.float64, torch.bfloat16) for _ in "wb"]
    assert got[0][2]
    if build(name, SMALL.get(name, {})).equal:
        assert got[0][1] == got[1][1]


def test_bfloat16_autocast_trains():
    def work(link):
        net = model(torch.float32)
        sync = attach(net, sgd(net), "ddp", link)
        losses = []
        for number in range(20):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(net, batch(link.rank, number, torch.float32))
            value.backward()
            sync.step()
            sync.zero_grad()
            losses.append(float(value))
        return digest(weights(net)), sum(losses[-5:]) < sum(losses[:5])

    got = memory.run(2, work)
    assert got[0][0] == got[1][0]
    assert got[0][1]


def test_all_workers_start_from_rank_0s_weights_and_buffers():
    class Counted(nn.Module):
        def __init__(self, rank):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)
            self.norm.running_mean += rank
            self.norm.num_batches_tracked += rank

    def work(link):
        net = seeded(Counted(link.rank), link.rank)
        own = digest([*net.parameters(), *net.buffers()])
        attach(net, sgd(net), "ddp", link)
        return own, digest([*net.parameters(), *net.buffers()])

    got = memory.run(3, work)
    assert len({own for own, _ in got}) == 3
    assert {after for _, after in got} == {got[0][0]}


def test_a_learning_rate_set_in_the_groups_is_the_optimizers():
    def work(link):
        net = model()
        optimizer = sgd(net)
        sync = attach(net, optimizer, "ddp", link)
        start = weights(net)
        for group in sync.param_groups:
            group["lr"] = 0.0
        step(net, sync, link.rank, 0)
        return equal(weights(net), start)

    assert memory.run(2, work) == [True, True]


def test_after_detach_the_model_is_an_ordinary_one():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        step(net, sync, link.rank, 0)
        sync.detach()
        before = link.meter.bytes_out
        loss(net, batch(link.rank, 1)).backward()
        loss(net, batch(link.rank, 2)).backward()
        return link.meter.bytes_out == before

    assert memory.run(2, work) == [True, True]


# -- refusals ----------------------------------------------------------------------------------------------------


def test_closures_and_grad_scalers_are_refused_with_what_to_do():
    def work(link):
        net = model(torch.float32)
        sync = attach(net, sgd(net), "ddp", link)
        with pytest.raises(ConfigError, match="closure would run backward several times"):
            sync.step(lambda: None)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(loss(net, batch(0, 0, torch.float32))).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ConfigError, match="train in bfloat16 autocast"):
                scaler.step(sync)
        for name in ("grad_scale", "found_inf"):  # the scaler's word to an optimizer that takes a scale
            setattr(sync.optimizer, name, torch.tensor(1.0))
            with pytest.raises(ConfigError, match="train in bfloat16 autocast"):
                sync.step()
        sync.step()  # what was refused is forgotten

    memory.run(1, work)


def refused(make, error, says, method="ddp", **settings):
    def work(link):
        net, optimizer = make()
        with pytest.raises(error, match=says):
            attach(net, optimizer, method, link, **settings)
        return True

    assert memory.run(1, work) == [True]


def with_optimizer(make):
    net = model()
    return net, make(net)


def test_an_optimizer_of_another_model_is_refused():
    refused(lambda: (model(), sgd(model())), ConfigError, "holds none of the model's trainable parameters")
    extra = nn.Parameter(torch.zeros(2))
    both = lambda net: torch.optim.SGD([*net.parameters(), extra], lr=0.1)  # noqa: E731
    refused(lambda: with_optimizer(both), ConfigError, "holds 1 tensors that are not the model's")


def test_a_model_already_wrapped_is_refused():
    class DistributedDataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model()

    def make():
        net = DistributedDataParallel()
        return net, sgd(net)

    refused(make, ClashError, "wrapped in DistributedDataParallel already")


@pytest.mark.parametrize(
    "make",
    [
        lambda net: sgd(net, momentum=0.9),
        lambda net: torch.optim.AdamW(net.parameters()),
        lambda net: sgd(net, momentum=0.9, nesterov=True),
    ],
)
def test_dgc_with_an_optimizer_that_has_momentum_of_its_own_is_refused(make):
    refused(lambda: with_optimizer(make), ClashError, "would add its own", "dgc")


def test_dgc_without_momentum_may_have_an_optimizer_with_it():
    def work(link):
        net = model()
        attach(net, sgd(net, momentum=0.9), "dgc", link, momentum=0.0)

    memory.run(1, work)


def test_complex_parameters_are_refused_by_name():
    def make():
        net = nn.Module()
        net.odd = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        return net, sgd(net)

    refused(make, ConfigError, "parameter odd is .* of torch.complex64")


def test_sparse_gradients_are_refused():
    def work(link):
        net = nn.Embedding(5, 3, sparse=True)
        attach(net, sgd(net), "ddp", link)
        with pytest.raises(ConfigError, match="sparse=False"):
            net(torch.tensor([1])).sum().backward()

    memory.run(1, work)


@pytest.mark.parametrize("difference", ["width", "name", "dtype", "number"])
def test_workers_with_different_models_are_refused_naming_one(difference):
    def make(other):
        if not other:
            return nn.Sequential(nn.Linear(4, 4))
        return {
            "width": lambda: nn.Sequential(nn.Linear(4, 5)),
            "name": lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 4)),
            "dtype": lambda: nn.Sequential(nn.Linear(4, 4)).double(),
            "number": lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        }[difference]()

    def work(link):
        net = make(link.rank == 2)
        wrong = 0 if link.rank == 2 else 2
        with pytest.raises(ConfigError, match=rf"worker {wrong} has another model than worker {link.rank}"):
            attach(net, sgd(net), "ddp", link)
        return True

    assert memory.run(3, work) == [True] * 3


def test_a_loss_that_is_not_finite_names_worker_step_and_parameter():
    net = model()
    nan_check(1.0, 0, 0, net)
    with pytest.raises(NotANumber, match="worker 3, step 7: the loss is nan; all parameters are finite"):
        nan_check(math.nan, 3, 7, net)
    with torch.no_grad():
        net[2].bias[1] = math.inf
    with pytest.raises(NotANumber, match=r"the loss is inf; parameter 2\.bias is not finite"):
        nan_check(math.inf, 3, 7, net)


@pytest.mark.parametrize("name", ["topk", "dgc", "powersgd"])
def test_an_overflowed_gradient_on_one_worker_moves_no_weight_and_no_residual(name):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), name, link, **SMALL[name])
        step(net, sync, link.rank, 0)
        before = weights(net), digest(sync.state_dict()["tensors"].values())
        x, y = batch(link.rank, 1)
        loss(net, (x * (math.inf if link.rank == 1 else 1), y)).backward()
        with pytest.raises((NotANumber, PeerLost)) as caught:
            sync.step()
        assert isinstance(caught.value, NotANumber) == (link.rank == 1)
        if link.rank == 1:
            link.close()  # as a worker that ends
        assert equal(weights(net), before[0])
        assert (
            digest(freeze({"sync": sync._state, "buckets": [b.state for b in sync._buckets]})[1].values()) == before[1]
        )
        return True

    assert memory.run(2, work) == [True, True]


def test_a_gradient_that_is_finite_and_does_not_fit_is_not_called_infinite():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp-half", link)
        x, y = batch(0, 0)
        (1e9 * loss(net, (x, y))).backward()
        with pytest.raises(NotANumber, match=r"worker 0: every gradient is finite, but half\('fp16'\): .*range"):
            sync.step()
        return True

    assert memory.run(1, work) == [True]


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    ("name", "settings"), [("topk", {}), ("ddp", {"compress": "int8"}), ("powersgd", {"rank": 1}), ("ddp-half", {})]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_is_named_with_its_worker_whatever_found_it(name, settings, bucket_bytes, dtype):
    def poisoned(link):
        net = model(dtype)
        net[2].weight.register_hook(lambda g: g.index_fill(0, torch.tensor([1]), math.nan) if link.rank == 1 else g)
        sync = attach(net, sgd(net), name, link, bucket_bytes=bucket_bytes, **settings)
        loss(net, batch(link.rank, 0, dtype)).backward()
        with pytest.raises((NotANumber, PeerLost)) as caught:
            sync.step()
        return str(caught.value)

    said = memory.run(2, poisoned)
    assert said[1].startswith("worker 1: gradient 2.weight is not finite")


class Failing(Exception):
    pass


@pytest.mark.parametrize("sync", ["every_step", "diloco"])
def test_a_compressor_that_cannot_run_on_a_parameters_dtype_is_refused_with_one_that_can(sync):
    def compress(x, state):
        if x.dtype == torch.float64:
            raise Failing('"quantize" is not implemented for Double')
        return identity().compress(x, state)

    talk = everyone(identity()._replace(compress=compress, name="picky", summable=False))
    made = {"every_step": every_step(talk), "diloco": diloco(talk)}[sync]

    def work(link):
        attach(narrow := model(torch.float32), sgd(narrow), made, link)
        attach(narrow := model(torch.bfloat16), sgd(narrow), made, link)
        mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
        says = (
            r"everyone\(picky\) cannot work on torch.float64 on cpu: .*not implemented for Double; everyone\(int8\) can"
        )
        with pytest.raises(ClashError, match=says):
            attach(mixed, sgd(mixed), made, link)
        assert link.meter.bytes_out == 0
        return True

    assert memory.run(1, work) == [True]


def test_a_worker_that_leaves_is_named_and_the_others_weights_have_not_moved():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), every_step(), link)
        step(net, sync, link.rank, 0)
        if link.rank == 1:
            return None
        before = weights(net)
        loss(net, batch(link.rank, 1)).backward()
        with pytest.raises(PeerLost, match="worker 1 is gone") as caught:
            sync.step()
        assert caught.value.peer == 1
        assert equal(weights(net), before)
        return True

    assert memory.run(2, work) == [True, None]


def test_workers_that_would_train_by_different_methods_are_told_so_before_the_first_step():
    def work(link):
        made = model()
        with pytest.raises(ConfigError, match=r"trains by diloco.*every=[23].*by diloco"):
            attach(made, sgd(made), "diloco", link, every=2 + link.rank)
        return True

    assert memory.run(2, work) == [True, True]


def test_a_sync_is_told_the_learning_rate_and_has_the_last_word():
    def work(link):
        net = model()
        heard = Sync(
            init=lambda params: (),
            after_step=lambda params, state, link: ({}, state),
            learning=lambda state, rate: (*state, rate),
            finish=lambda params, state, link: ({0: torch.full_like(params[0], len(state))}, "finished"),
        )
        sync = attach(net, sgd(net, lr=0.5), heard, link)
        step(net, sync, link.rank, 0)
        sync.param_groups[0]["lr"] = 0.25
        step(net, sync, link.rank, 1)
        rates = sync._state
        sync.finish()
        return rates, weights(net)[0].unique().tolist(), sync._state

    assert memory.run(1, work) == [((0.5, 0.25), [2.0], "finished")]


def test_to_finish_what_needs_no_finishing_only_drains():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "diloco", link, every=2)
        step(net, sync, link.rank, 0)
        before = weights(net)
        sync.finish()
        return equal(before, weights(net))

    assert memory.run(2, work) == [True, True]


def test_between_backward_and_step_no_method_gives_a_state():
    def work(link, method, settle):
        net = model()
        sync = attach(net, sgd(net), method, link)
        step(net, sync, link.rank, 0)
        sync.state_dict()
        loss(net, batch(link.rank, 1)).backward()
        if settle:
            sync.synchronize()
        with pytest.raises(ConfigError, match="between backward and it"):
            sync.state_dict()
        sync.step()
        sync.state_dict()
        return True

    for method in ("ddp", "topk", "diloco", "accordion"):
        for settle in (False, True):
            assert memory.run(2, lambda link, m=method, s=settle: work(link, m, s)) == [True, True]


def test_a_gradient_that_was_replaced_after_it_had_left_is_refused():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        loss(net, batch(link.rank, 0)).backward()
        weight = next(net.parameters())
        weight.grad = weight.grad * 0
        with pytest.raises(ConfigError, match="changed between backward and step"):
            sync.step()
        return True

    assert memory.run(2, work) == [True, True]


def test_a_second_model_may_be_attached_while_the_first_ones_exchange_is_under_way():
    def work(link):
        first, second = model(), model(seed=link.rank)
        sync = attach(first, sgd(first), "streaming-diloco", link, every=2, fragments=2, overlap=0)
        slow = link.start(link.all_gather, [Packet({"x": torch.zeros(1 << 20)})])
        other = attach(second, sgd(second), "ddp", link)
        slow.result()
        for number in range(3):
            step(first, sync, link.rank, number)
            step(second, other, link.rank, number)
        return weights(second)

    assert equal(*memory.run(2, work))


def test_a_model_that_nobody_holds_any_more_is_freed_though_it_was_never_detached():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "topk", link)
        step(net, sync, link.rank, 0)
        return [weakref.ref(thing) for thing in (sync, net, next(net.parameters()))]

    gone = memory.run(2, work)
    gc.collect()
    assert [[ref() for ref in refs] for refs in gone] == [[None] * 3] * 2

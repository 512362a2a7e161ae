"""Just One Byte: the laws of its section, a worker that comes back, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laconic import attach
from laconic.compress import error_feedback, half, identity, int8, log_byte, topk
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.links import memory
from laconic.packet import FRAME, Packet, from_bytes, to_bytes
from laconic.sync import one_byte
from tests.tiny import batch, close, equal, loss, model, sgd, step, together, train, weights

D = 12


def quadratic(seed=0):
    """A quadratic loss, its gradient, and a point."""
    generator = torch.Generator().manual_seed(seed)
    root, b, x = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((D, D), (D,), (D,)))
    matrix = root @ root.T
    return lambda x: 0.5 * x @ matrix @ x + b @ x, lambda x: matrix @ x + b, x


def slopes_and_directions(steps, eps, directions):
    """The slopes that a worker finds, and what it looked along, at one point."""
    value, gradient, x = quadratic()
    sync = one_byte(identity(), eps=eps, directions=directions)
    state, found = sync.init([x]), []
    with memory.alone() as link:
        for _ in range(steps):
            seen = []

            def loss_at(values, seen=seen):
                seen.append(next(iter(values)))
                return float(value(seen[-1]))

            _, state = sync.explore([x], state, link, loss_at)
            plus, minus = seen
            found.append((float(value(plus) - value(minus)) / (2 * eps), (plus - minus) / (2 * eps)))
    return found, gradient(x)


@given(eps=st.floats(1e-4, 10.0), directions=st.sampled_from(["gaussian", "rademacher", "axes"]))
def test_on_a_quadratic_the_slope_is_exactly_the_gradients_part_along_the_direction(eps, directions):
    found, gradient = slopes_and_directions(3, eps, directions)
    for p, z in found:
        assert p == pytest.approx(float(z @ gradient), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("directions", ["gaussian", "rademacher"])
def test_the_mean_of_slope_times_direction_is_the_gradient(directions):
    count = 600
    found, gradient = slopes_and_directions(count, 0.5, directions)
    mean = sum(p * z for p, z in found) / count
    error = float((mean - gradient).norm() / gradient.norm())
    assert error < 1.3 * ((D + 1) / count) ** 0.5  # E|pz - g|^2 = (d + 1)|g|^2 for normal z, less for signs


def test_along_all_axes_at_once_it_is_the_gradient_step():
    """A rung of the ladder: one sample to a parameter."""
    count = sum(p.numel() for p in model().parameters())
    close(
        together(1, one_byte(identity(), count, 1e-4, "axes"), steps=2)[0],
        together(1, "ddp", steps=2)[0],
        1e-5,
    )


@pytest.mark.parametrize(("workers", "samples"), [(2, 4), (4, 2), (8, 1)])
def test_so_many_workers_of_so_many_samples_are_one_worker_with_all_of_them(workers, samples):
    def go(workers, samples):
        def work(link):
            net = model()
            sync = attach(net, sgd(net), one_byte(identity(), samples), link)
            for number in range(4):
                step(net, sync, 0, number)  # one batch, whoever asks
            return weights(net)

        return memory.run(workers, work)

    (alone,) = go(1, workers * samples)
    for worker in go(workers, samples):
        assert equal(worker, alone)


@pytest.mark.parametrize("compressor", [log_byte(missing=True), half(), identity()], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_replicas_are_equal_to_the_bit_after_every_step_in_every_dtype(compressor, dtype):
    method = one_byte(compressor, 2, 1e-2)
    seen = together(3, method, 6, make=lambda: model(dtype), each=lambda sync, net: weights(net))
    for one, two, three in zip(*seen, strict=True):
        assert equal(one, two)
        assert equal(one, three)
    assert not equal(seen[0][0], seen[0][-1])


@pytest.mark.parametrize("samples", [1, 8, 30])
def test_each_step_a_worker_sends_a_byte_a_sample_to_each_peer_and_a_header(samples):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "just-one-byte", link, samples=samples)
        before = link.meter.bytes_out, link.meter.messages_out
        for number in range(3):
            step(net, sync, link.rank, number)
        return link.meter.bytes_out - before[0], link.meter.messages_out - before[1]

    empty, _ = log_byte().compress(torch.zeros(0), ())
    header = FRAME.size + empty.nbytes
    for sent, messages in memory.run(3, work):
        assert messages == 3 * 2
        per_message = sent / messages
        assert per_message <= header + math.ceil(samples / 8) * 8 + 8  # what is counted is padded to eights
        assert per_message >= samples


def test_one_byte_descends_as_well_as_exact_slopes_do():
    """Logistic regression, 20 numbers, 800 rows: more samples come nearer the optimum, and the byte costs nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 20, generator=generator)
    truth = torch.randn(20, generator=generator)
    y = (x @ truth + 0.5 * torch.randn(800, generator=generator) > 0).float()

    def net():
        made = nn.Linear(20, 1, bias=False)
        nn.init.zeros_(made.weight)
        return made

    def value(net, rows):
        return nn.functional.binary_cross_entropy_with_logits(net(x[rows]).squeeze(1), y[rows])

    def descend(workers, samples, compressor):
        def work(link):
            made = net()
            sync = attach(made, sgd(made, 0.2), one_byte(compressor, samples), link)
            draw = torch.Generator().manual_seed(link.rank)
            for _ in range(150):
                rows = torch.randint(800, (64,), generator=draw)
                sync.step(lambda rows=rows: value(made, rows))
            return float(value(made, slice(None)).detach()), weights(made)

        found = memory.run(workers, work)
        assert all(equal(found[0][1], other[1]) for other in found)
        return found[0][0]

    one, many = descend(1, 1, identity()), descend(2, 4, identity())
    byte = descend(2, 4, log_byte(missing=True))
    best = net()
    optimizer = torch.optim.LBFGS(best.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        found = value(best, slice(None))
        found.backward()
        return found

    optimizer.step(closure)
    optimum = float(value(best, slice(None)).detach())
    assert math.log(2) > one > many > optimum
    assert byte == pytest.approx(many, abs=0.002)


# -- a worker that was away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_worker_that_was_away_replays_the_record_and_equals_the_others_bit_for_bit(dtype, tmp_path):
    """It left with what it had saved at step 3; the record of step 9 is a file."""

    def stayed(link):
        net = model(dtype)
        optimizer = sgd(net, 0.05)
        sync = attach(net, optimizer, "just-one-byte", link, samples=2, eps=1e-2)
        for number in range(9):
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + number)  # a schedule is on record too
            if number == 3:
                saved = net.state_dict(), sync.state_dict()
                saved = {n: t.clone() for n, t in saved[0].items()}, saved[1]
            step(net, sync, link.rank, number)
        if link.rank == 0:
            (tmp_path / "record").write_bytes(to_bytes([sync.record()]).numpy().tobytes())
        return saved, weights(net), list(sync.weights().values()), sync.state_dict()

    one, other = memory.run(2, stayed)

    def came_back(link):
        net = model(dtype, seed=5)
        sync = attach(net, sgd(net, 0.05), "just-one-byte", link, samples=2, eps=1e-2)
        saved = (one, other)[link.rank][0]
        net.load_state_dict(saved[0])
        sync.load_state_dict(saved[1])
        (record,) = from_bytes((tmp_path / "record").read_bytes())
        before = link.meter.bytes_out
        sync.catch_up(record)
        assert link.meter.bytes_out == before
        return weights(net), list(sync.weights().values()), sync.state_dict()

    got = memory.run(2, came_back)[0]
    for stays in (one, other):
        assert equal(got[0], stays[1])
        assert equal(got[1], stays[2])
    assert got[2]["skeleton"] == one[3]["skeleton"]
    assert all(torch.equal(t, one[3]["tensors"][n]) for n, t in got[2]["tensors"].items())


def test_the_record_is_of_the_last_rounds_alone_and_takes_their_bytes():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "just-one-byte", link, samples=3, keep=4)
        old = sync.record()
        for number in range(7):
            step(net, sync, link.rank, number)
        record = sync.record()
        fresh = model()
        late = attach(fresh, sgd(fresh), "just-one-byte", link, samples=3, keep=4)
        with pytest.raises(ConfigError, match="rounds 4 to 7, and this worker has taken 0; begin with newer weights"):
            late.catch_up(record)
        before = weights(net)
        sync.catch_up(record)  # nothing is new in it
        assert equal(before, weights(net))
        with pytest.raises(ConfigError, match="rounds 1 to 0, and this worker has taken 7"):
            sync.catch_up(old)
        return record.tensors["codes"].numel(), record.tensors["rates"].numel()

    assert memory.run(2, work) == [(4 * 6, 4)] * 2


def damaged():
    rates = torch.ones(2, dtype=torch.float64)
    codes = torch.ones(2, dtype=torch.uint8)
    good = {"first": 0, "rounds": [2, 1]}
    return [
        (Packet({"codes": codes, "rates": rates}, good | {"first": -1}), "begins at -1"),
        (Packet({"codes": codes, "rates": rates}, good | {"first": True}), "begins at True"),
        (Packet({"codes": codes, "rates": rates}, good | {"rounds": [2]}), r"is \[2\] in rounds and codes"),
        (Packet({"codes": codes, "rates": rates}, good | {"rounds": [2, 2]}), "'codes' is"),
        (Packet({"codes": codes, "rates": rates[:1]}, good), "'rates' is"),
        (Packet({"codes": codes.float(), "rates": rates}, good), "'codes' is"),
        (Packet({"rates": rates}, good), "lacks 'codes'"),
    ]


@pytest.mark.parametrize(("record", "says"), damaged())
def test_a_damaged_record_is_refused_and_nothing_has_moved(record, says):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "just-one-byte", link)
        before = weights(net)
        record.header["steps"] = sync.record().header["steps"]
        fresh = Packet(record.tensors, dict(record.header))
        with pytest.raises(PacketError, match=says):
            sync.catch_up(fresh)
        return equal(before, weights(net))

    assert memory.run(1, work) == [True]


def test_the_record_of_a_run_with_other_directions_is_refused():
    def work(link):
        (first, other) = (attach(net, sgd(net), one_byte(seed=s), link) for s, net in ((0, model()), (1, model())))
        with pytest.raises(ConfigError, match=r"seed=0.*here they go by.*seed=1"):
            other.catch_up(first.record())
        plain = attach(net := model(), sgd(net), "ddp", link)
        with pytest.raises(ConfigError, match="keeps no record of its steps; save a checkpoint"):
            plain.record()
        with pytest.raises(ConfigError, match="cannot take steps from a record; load a checkpoint"):
            plain.catch_up(first.record())
        return True

    assert memory.run(1, work) == [True]


# -- the look ----------------------------------------------------------------------------------------------------


def test_a_look_leaves_parameters_modes_and_generators_as_they_were_and_sees_one_noise():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.drop = nn.Dropout(0.5)
            self.norm = nn.BatchNorm1d(6).eval()

        def forward(self, x):
            return self.layer(self.drop(self.norm(x)))

    net = Noisy()
    modes = [m.training for m in net.modules()]
    seen = []

    def closure():
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
        seen.append((weights(net), float(torch.rand(()))))
        return loss(net, batch(0, 0, torch.float32))

    with memory.alone() as link:
        sync = attach(net, sgd(net, 0.0), "just-one-byte", link, samples=3)
        before = weights(net)
        torch.manual_seed(0)
        one = torch.rand(())
        torch.manual_seed(0)
        told = sync.step(closure)
        assert len({noise for _, noise in seen}) == 1
        assert seen[0][1] == float(one)
        assert float(torch.rand(())) != float(one), "the next step sees other noise"
    assert equal(weights(net), before), "at a rate of 0 nothing moves"
    assert len(seen) == 6
    assert not any(equal(w, before) for w, _ in seen)
    assert [m.training for m in net.modules()] == modes
    assert told == pytest.approx(float(loss(net.eval(), batch(0, 0, torch.float32)).detach()), abs=0.01)


def test_a_closure_that_raises_moves_nothing():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "just-one-byte", link)
        before, state = weights(net), sync.state_dict()["skeleton"]
        calls = []

        def closure():
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("out of data")
            return loss(net, batch(0, 0))

        with pytest.raises(RuntimeError, match="out of data"):
            sync.step(closure)
        assert net.training
        assert sync.state_dict()["skeleton"] == state
        return equal(weights(net), before)

    assert memory.run(1, work) == [True]


def test_a_loss_that_is_not_finite_on_one_worker_counts_as_nothing_and_on_all_is_refused():
    def go(lost):
        def work(link):
            net = model()
            sync = attach(net, sgd(net), one_byte(samples=2), link)
            data = batch(link.rank, 0)
            sync.step(lambda: loss(net, data) * (math.nan if link.rank in lost else 1))
            return weights(net)

        return memory.run(2, work)

    one = go({1})
    assert equal(*one)
    assert all(bool(torch.isfinite(w).all()) for w in one[0])
    with pytest.raises(NotANumber, match="in round 1 no worker found a finite loss"):
        go({0, 1})


def test_a_slope_is_bounded_by_most_whoever_sends_it():
    def moved(most, factor):
        def work(link):
            net = model()
            before = weights(net)
            sync = attach(net, sgd(net), one_byte(directions="rademacher", most=most), link)
            data = batch(0, 0)
            sync.step(lambda: loss(net, data) * factor)
            return max(float((a - b).abs().max()) for a, b in zip(weights(net), before, strict=True))

        return memory.run(1, work)[0]

    assert moved(None, 1e9) == pytest.approx(0.1 * math.exp(63 / 8), rel=1e-3)
    assert moved(0.5, 1e9) == pytest.approx(0.1 * 0.5, rel=1e-3)
    assert 0 < moved(100.0, 1.0) < 10


def test_parameters_of_16_bits_move_by_steps_that_16_bits_cannot_hold():
    def go(dtype):
        method = one_byte(identity(), 4, 1e-2)
        return together(1, method, 50, make=lambda: model(dtype), optimizer=lambda net: sgd(net, 1e-3))[0]

    start = weights(model(torch.bfloat16))
    moved = sum(float((a - b).abs().sum()) for a, b in zip(go(torch.bfloat16), start, strict=True))
    assert moved > 0.1 * sum(float((a - b).abs().sum()) for a, b in zip(go(torch.float32), start, strict=True))


def test_a_peer_that_sends_something_else_is_named():
    def work(link):
        if link.rank == 1:
            attach(net := model(), sgd(net), one_byte(samples=2), link)
            packet, _ = log_byte().compress(torch.ones(3), ())
            link.all_gather([packet])
            return True
        net = model()
        sync = attach(net, sgd(net), one_byte(samples=2), link)
        before = weights(net)
        with pytest.raises(PacketError, match="worker 1 sent 1 packets, wanted one of slopes"):
            step(net, sync, 0, 0)
        return equal(before, weights(net))

    assert memory.run(2, work) == [True, True]


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"samples": 0}, ConfigError, "samples must be a whole number of at least 1"),
        ({"eps": 0.0}, ConfigError, "eps must be positive, got 0"),
        ({"eps": math.nan}, ConfigError, "eps must be positive, got nan"),
        ({"most": -1.0}, ConfigError, "most must be positive"),
        ({"keep": -1}, ConfigError, "keep must be a whole number"),
        ({"directions": "gauss"}, ConfigError, "did you mean 'gaussian'"),
        (
            {"compressor": error_feedback(log_byte())},
            ClashError,
            "each step's slopes are of new directions; use log_by",
        ),
        ({"compressor": topk(1.0)}, ClashError, "does not send each slope by itself"),
        ({"compressor": int8()}, ClashError, "does not send each slope by itself"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_method_is_made(settings, error, says):
    with pytest.raises(error, match=says):
        one_byte(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: sgd(net, momentum=0.9),
        lambda net: sgd(net, weight_decay=0.1),
        lambda net: torch.optim.Adam(net.parameters(), betas=(0.0, 0.9)),
        lambda net: torch.optim.AdamW(net.parameters()),
    ],
)
def test_an_optimizer_whose_momentum_or_scaling_would_do_nothing_is_refused(make):
    def work(link):
        net = model()
        with pytest.raises(ClashError, match=r"takes its steps itself.*build it with torch\.optim\.SGD"):
            attach(net, make(net), "just-one-byte", link)
        return True

    assert memory.run(1, work) == [True]


def test_clipping_summing_and_stepping_without_a_loss_are_refused_with_what_to_do():
    def work(link):
        net = model()
        with pytest.raises(ClashError, match="no gradient whose norm clip=1 could bound; set most="):
            attach(net, sgd(net), "just-one-byte", link, clip=1.0)
        sync = attach(net, sgd(net), "just-one-byte", link)
        with pytest.raises(ConfigError, match=r"without backward; call step\(lambda: loss\(model, batch\)\)"):
            sync.step()
        with pytest.raises(ConfigError, match="takes no gradients, so none can be summed"), sync.no_sync():
            pass
        layers = list(net.children())
        two = torch.optim.SGD([{"params": layers[0].parameters(), "lr": 0.1}, {"params": layers[2].parameters()}], 0.2)
        with pytest.raises(ConfigError, match="has one learning rate"):
            attach(net, two, "just-one-byte", link).step(lambda: 0.0)
        return True

    assert memory.run(1, work) == [True]


def test_it_holds_no_gradients_and_no_state_of_an_optimizer():
    def work(link):
        net = model()
        optimizer = sgd(net)
        sync = attach(net, optimizer, "just-one-byte", link)
        step(net, sync, 0, 0)
        held = sum(t.numel() * t.element_size() for t in sync.state_dict()["tensors"].values())
        return [p.grad for p in net.parameters()], dict(optimizer.state), held

    ((grads, state, held),) = memory.run(1, work)
    assert all(g is None for g in grads)
    assert state == {}
    assert held == 1 + 8


def test_one_worker_trains_through_the_same_code():
    with memory.alone() as link:
        train(link, "just-one-byte", 2)
        assert link.meter.bytes_out == 0

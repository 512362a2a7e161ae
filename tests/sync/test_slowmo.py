"""SlowMo: what it equals, where it is stable, and what the learning rate does to its momentum."""

import pytest
import torch

from laconic import attach
from laconic.errors import ClashError, ConfigError
from laconic.links import memory
from laconic.sync import diloco, local_steps, slowmo
from laconic.sync.slowmo import coarse
from tests.sync.quadratic import distance
from tests.tiny import batch, close, equal, loss, model, sgd, step, together, weights


def test_at_a_constant_learning_rate_it_is_heavy_ball_diloco():
    a = together(3, slowmo(every=2, lr=0.8, momentum=0.6), steps=10)
    b = together(3, diloco(None, 2, 0.8, 0.6, "heavy-ball"), steps=10)
    for one, other in zip(a, b, strict=True):
        close(one, other)


def test_without_momentum_it_is_local_sgd():
    close(together(2, slowmo(every=3, momentum=0.0), steps=7)[0], together(2, local_steps(every=3), steps=7)[0])


def scheduled(method, rates):
    """The weights and the state after one step at each of these learning rates."""

    def work(link):
        net = model()
        optimizer = sgd(net)
        sync = attach(net, optimizer, method, link)
        for number, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            step(net, sync, link.rank, number)
        return weights(net), sync._state.fragments[0].velocity

    return memory.run(2, work)[0]


def test_the_momentum_is_in_units_of_the_gradient_and_steps_with_the_rate_at_the_boundary():
    """u <- beta u + d / gamma, x <- x - alpha gamma u, against a loop of a few lines."""
    rates, momentum, lr = [0.1, 0.05, 0.2], 0.5, 0.9
    (ours, velocity), u = scheduled(slowmo(every=1, lr=lr, momentum=momentum), rates), None
    x = weights(model())
    for number, rate in enumerate(rates):
        moved = []
        for worker in range(2):
            net = model()
            with torch.no_grad():
                for p, value in zip(net.parameters(), x, strict=True):
                    p.copy_(value)
            optimizer = sgd(net, lr=rate)
            loss(net, batch(worker, number)).backward()
            optimizer.step()
            moved.append([a - b for a, b in zip(x, weights(net), strict=True)])
        mean = [sum(ds) / 2 for ds in zip(*moved, strict=True)]
        u = [d / rate + (momentum * v if u else 0) for d, v in zip(mean, u or mean, strict=True)]
        x = [a - lr * rate * v for a, v in zip(x, u, strict=True)]
    close(ours, x)
    close(velocity, u, 1e-10)


def test_a_rate_that_starts_and_ends_at_0_divides_nothing_by_it():
    rates = [0.0, 0.0, 0.1, 0.2, 0.1, 0.0]
    ours, velocity = scheduled(slowmo(every=1, floor=0.1), rates)
    assert all(bool(torch.isfinite(t).all()) for t in [*ours, *velocity])
    assert not equal(ours, weights(model()))
    still, none = scheduled(slowmo(every=1), [0.0, 0.0])
    assert equal(still, weights(model()))
    assert all(not v.any() for v in none)


def test_what_was_moved_before_the_rate_fell_to_0_is_not_lost():
    """The last round of a schedule that ends at 0: the divisor has a floor, and multiplies again."""
    a = scheduled(slowmo(every=3, momentum=0.0, floor=0.01), [0.1, 0.1, 0.0])[0]
    close(a, together(2, local_steps(every=2), steps=2)[0], 1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("contraction", [0.5, 1.0])
def test_on_a_quadratic_it_is_stable_up_to_the_derived_rate(momentum, contraction):
    limit = 2 * (1 + momentum) / contraction
    assert distance(slowmo(every=2, lr=0.98 * limit, momentum=momentum), contraction, 1200, 2) < 0.1
    assert distance(slowmo(every=2, lr=1.02 * limit, momentum=momentum), contraction, 400, 2) > 10


def test_an_inner_optimizer_may_start_anew_each_round():
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=0.01)  # noqa: E731

    def counts(inner):
        def each(sync, net):
            return [float(s["step"]) for s in sync.optimizer.state.values()][:1]

        return together(1, slowmo(every=3, inner=inner), steps=7, optimizer=adam, each=each)[0]

    assert counts("keep") == [[1], [2], [3], [4], [5], [6], [7]]
    assert counts("reset") == [[1], [2], [], [1], [2], [], [1]]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'reset'"):
        slowmo(inner="resett")
    with pytest.raises(ClashError, match="fragments end their rounds at different steps"):
        slowmo(inner="reset", fragments=2)
    with pytest.raises(ConfigError, match=r"floor must be in \(0, 1\]"):
        slowmo(floor=0.0)


def test_a_coarse_norm_forgets_the_last_digits_and_never_less_than_it_says():
    for seed in range(50):
        x = [torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0 ** (seed - 25)]
        exact = float(x[0].norm())
        assert coarse(x) == coarse([x[0] * (1 + 1e-12)])
        assert abs(coarse(x) / exact - 1) <= 1 / 2048
        assert exact < coarse(x, up=True) <= exact * (1 + 1 / 1024)
    assert coarse([torch.zeros(3)]) == coarse([]) == 0.0

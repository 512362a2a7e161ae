"""PowerSGD: the properties of the spec's B.5, and torch's own hook, step for step."""

import itertools

import pytest
import torch

from laconic.errors import ConfigError
from laconic.exchange import powersgd
from laconic.exchange.powersgd import orthonormal
from laconic.links import memory


def draw(rank, step, *shape):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rounds(workers, talk, steps, given):
    def work(link):
        state = talk.init(given(link.rank, 0))
        means, sizes = [], []
        for step in range(steps):
            before = link.meter.bytes_out
            mean, state = talk.run(given(link.rank, step), state, link)
            means.append(mean)
            sizes.append(link.meter.bytes_out - before)
        return means, state, sizes

    return memory.run(workers, work)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (5, 4, 9)])
def test_at_full_rank_the_mean_is_exact_and_nothing_of_it_is_kept(shape):
    given = lambda rank, step: [draw(rank, step, *shape)]  # noqa: E731
    results = rounds(3, powersgd(rank=6, min_rate=0.1), 4, given)
    for step in range(4):
        exact = sum(given(r, step)[0] for r in range(3)) / 3
        torch.testing.assert_close(results[0][0][step][0], exact, rtol=0, atol=1e-12)
    assert float(sum(state.residual[0] for _, state, _ in results).abs().max()) < 1e-11
    if shape[0] <= 6:
        assert max(float(state.residual[0].abs().max()) for _, state, _ in results) < 1e-12


@pytest.mark.parametrize("warm", [True, False])
def test_all_that_was_sent_plus_the_mean_residual_is_all_that_came(warm):
    given = lambda rank, step: [draw(rank, step, 20, 30)]  # noqa: E731
    results = rounds(3, powersgd(rank=2, warm_start=warm), 30, given)
    came = sum(given(r, s)[0] for r in range(3) for s in range(30)) / 3
    sent = sum(means[0] for means in results[0][0])
    kept = sum(state.residual[0].reshape(20, 30) for _, state, _ in results) / 3
    assert float((sent + kept - came).norm() / came.norm()) < 1e-13
    assert float(kept.norm()) > 1


def test_a_constant_matrix_comes_ever_closer_to_its_best_low_rank_approximation():
    m = torch.randn(40, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(m)
    best = float(values[2:].square().sum().sqrt())
    talk = powersgd(rank=2)

    def work(link):
        state, ratios = talk.init([m]), []
        for _ in range(60):
            (approximation,), state = talk.run([m], state, link)
            ratios.append(float((m - approximation).norm()) / best)
            # The warm start alone, as the spec measures it: no feedback.
            state = state._replace(residual=[torch.zeros_like(m)])
        return ratios

    (ratios,) = memory.run(1, work)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(ratios))
    assert ratios[0] < 1.06
    assert ratios[-1] < 1.001


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (50, 4), (4, 4), (300, 8)])
@pytest.mark.parametrize("kind", ["random", "nearly dependent", "zero", "one column zero"])
def test_the_basis_is_orthonormal_and_spans_the_columns(rows, columns, kind):
    m = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "nearly dependent":
        m = m[:, :1] + 1e-9 * m
    elif kind == "zero":
        m = torch.zeros_like(m)
    elif kind == "one column zero":
        m[:, 0] = 0
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        q = orthonormal(m.to(dtype))
        torch.testing.assert_close(q.T @ q, torch.eye(columns, dtype=dtype), rtol=0, atol=tolerance)
        torch.testing.assert_close(
            q @ (q.T @ m.to(dtype)), m.to(dtype), rtol=0, atol=tolerance * max(1.0, float(m.norm()))
        )


def test_bytes_are_rank_times_rows_plus_columns_a_matrix():
    per_rank = [
        rounds(2, powersgd(rank=r), 2, lambda rank, step: [draw(rank, step, 400, 600)])[0][2][-1] for r in (3, 6)
    ]
    assert (
        abs(per_rank[1] - per_rank[0] - 3 * (400 + 600) * 8) <= 32
    )  # numbers in headers grow a digit; two workers: a ring sends each byte once


def test_vectors_and_matrices_that_would_not_shrink_are_averaged_exactly():
    given = lambda rank, step: [draw(rank, step, 7), draw(rank, step, 3, 4), draw(rank, step)]  # noqa: E731
    results = rounds(3, powersgd(rank=1), 2, given)
    for i in range(3):
        exact = sum(given(r, 1)[i] for r in range(3)) / 3
        torch.testing.assert_close(results[1][0][1][i], exact, rtol=0, atol=1e-15)
    assert results[0][1].residual == [None, None, None]


def test_a_matrix_of_zeros_stays_zero_and_harmless():
    given = lambda rank, step: [torch.zeros(30, 40)]  # noqa: E731
    for means, state, _ in rounds(2, powersgd(rank=2), 3, given):
        assert all(not m[0].any() for m in means)
        assert bool(torch.isfinite(state.right[0]).all())


def test_after_zeros_a_matrix_is_learnt_again():
    given = lambda rank, step: [torch.zeros(30, 40, dtype=torch.float64) if step < 2 else draw(0, 0, 30, 40)]  # noqa: E731
    results = rounds(2, powersgd(rank=4), 12, given)
    sent = sum(m[0] for m in results[0][0])
    assert float((sent - 10 * given(0, 5)[0]).norm() / (10 * given(0, 5)[0]).norm()) < 0.5


def test_a_cold_start_looks_in_new_directions_each_round():
    """With the same factor every round, what lies outside its image would hardly ever be sent."""
    given = lambda rank, step: [draw(0, 0, 30, 40)]  # noqa: E731
    results = rounds(2, powersgd(rank=2, warm_start=False), 60, given)
    norms = [float(sum(m[0] for m in results[0][0][: n + 1]).sub((n + 1) * given(0, 0)[0]).norm()) for n in (29, 59)]
    assert norms[1] < 1.3 * norms[0]  # the residual has settled


def test_the_residual_stays_bounded_where_workers_always_differ():
    """200 rounds of data that differ by worker: the paper's own residual grows with every round, this one does not."""
    given = lambda rank, step: [draw(rank, 0, 20, 30)]  # noqa: E731
    results = rounds(2, powersgd(rank=2), 200, given)
    early = rounds(2, powersgd(rank=2), 50, given)
    for (_, late, _), (_, soon, _) in zip(results, early, strict=True):
        assert float(late.residual[0].norm()) < 1.5 * float(soon.residual[0].norm())


def reference(workers, steps, rank, given, right):
    """Torch's hook (powerSGD_hook) with its defaults but no start-up: QR, warm start, the aggregate residual."""
    errors, q, out = [torch.zeros_like(given(0, 0)) for _ in range(workers)], right, []
    for step in range(steps):
        m = [given(w, step) + errors[w] for w in range(workers)]
        p = torch.linalg.qr(sum(x @ q for x in m)).Q
        q = sum(x.T @ p for x in m) / workers
        out.append(p @ q.T)
        errors = [x - p @ q.T for x in m]
    return out


def test_it_follows_the_paper_and_torchs_hook_step_for_step_though_its_residual_is_the_bounded_one():
    given = lambda w, step: draw(w, step, 24, 18)  # noqa: E731
    talk = powersgd(rank=3)
    right = talk.init([given(0, 0)]).right[0]
    expected = reference(2, 25, 3, given, right)
    got = rounds(2, talk, 25, lambda w, step: [given(w, step)])[0][0]
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine[0], theirs, rtol=1e-9, atol=1e-9)


def test_a_rank_under_1_is_refused():
    with pytest.raises(ConfigError, match="rank must be a whole number of at least 1"):
        powersgd(0)

"""Graphs: who talks to whom, that nobody is cut off, and what is said where somebody is."""

import math

import pytest
import torch

from laconic.errors import ConfigError
from laconic.exchange import graph, push_sum, topology
from laconic.exchange.mixing import contraction, keeping_the_mean, keeping_the_sum, mean_matrix, sum_matrix
from laconic.exchange.topology import shape

NAMED = ["ring", "torus", "exponential", "one-peer", "complete", "random", "random:0.5", "regular:3"]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("size", [1, 2, 4, 6, 16, 30])
def test_named_graphs_join_everyone_and_nobody_to_itself(name, size):
    if name == "torus" and size == 2:
        pytest.skip("two workers make no rectangle")
    if name == "regular:3" and 1 < size < 4:
        pytest.skip("they have no three others")
    made = shape(name).among(size)
    assert made.size == size
    for number, edges in enumerate(made.rounds):
        assert all(a != b for a, b in edges)
        for rank in range(size):
            assert all(rank in made.sources(to, number) for to in made.targets(rank, number))
            assert made.targets(rank, number) == sorted(to for a, to in edges if a == rank)


@pytest.mark.parametrize(
    ("name", "degree"),
    [("ring", 2), ("torus", 4), ("exponential", 4), ("one-peer", 1), ("complete", 15), ("regular:3", 3)],
)
def test_each_of_16_workers_has_as_many_neighbours_as_the_graph_promises(name, degree):
    made = shape(name).among(16)
    assert {len(made.targets(rank, number)) for rank in range(16) for number in range(len(made.rounds))} == {degree}
    assert made.both == (name not in ("exponential", "one-peer"))


def test_random_graphs_are_drawn_from_the_seed_alone():
    for name in ("random", "regular:3"):
        first = shape(name, 1).among(20)
        topology._named.cache_clear()  # as in another process
        again = shape(name, 1).among(20)
        assert again is not first
        assert again.rounds == first.rounds
        assert again.rounds != shape(name, 2).among(20).rounds


def test_all_workers_of_a_process_have_one_graph_and_a_file_that_changed_is_another(tmp_path):
    """A thousand simulated workers would each check it, which takes longer than their round."""
    assert shape("one-peer").among(8) is shape("one-peer").among(8)
    assert shape("0-1,1-2").among(3) is shape("0-1,1-2").among(3)
    file = tmp_path / "edges.txt"
    seen = []
    for edges in ("0-1\n1-2\n", "0-1\n0-2\n", "0-1\n1-2\n"):
        file.write_text(edges)
        seen.append(shape(str(file)).among(3))
    assert seen[0].rounds != seen[1].rounds
    assert seen[0] is seen[2]


def test_edges_may_be_written_in_a_line_or_in_a_file_and_change_from_round_to_round(tmp_path):
    assert shape("0-1, 1>2,2>0").among(3).rounds == (((0, 1), (1, 0), (1, 2), (2, 0)),)
    assert shape("0>1;1>2;2>0").among(3).rounds == (((0, 1),), ((1, 2),), ((2, 0),))
    (tmp_path / "edges.txt").write_text("# a triangle\n0 1\n1-2\n;\n2>0  # back\n")
    made = shape(str(tmp_path / "edges.txt"))
    assert made.among(3).rounds == (((0, 1), (1, 0), (1, 2), (2, 1)), ((2, 0),))
    assert made.name.startswith("edges.txt ")
    before = made.name
    (tmp_path / "edges.txt").write_text("0 1\n1-2\n")
    assert shape(str(tmp_path / "edges.txt")).name != before, "its name tells what is in it, which all workers compare"


@pytest.mark.parametrize(
    ("text", "size", "says"),
    [
        ("rign", 4, "did you mean 'ring'"),
        ("ring:3", 4, "unknown graph"),
        ("nowhere.txt", 4, "nowhere.txt cannot be read: No such file"),
        ("0-1-2", 3, "'0-1-2' is no edge; write 0-1 for both ways"),
        ("0-1,1-1", 2, "leads from worker 1 to itself"),
        (";", 2, "has no edges"),
        ("0-1,2-3", 4, "not connected: no edge joins workers 0, 1 with workers 2, 3"),
        ("0>1,1>2", 3, "not connected: no way leads to worker 0 from workers 1, 2"),
        ("1>0", 2, "no way leads from worker 0 to worker 1"),
        ("0>1;0>2;1>0", 3, "no way leads to worker 0 from worker 2"),
        ("0-1,1-2", 4, r"of 3 workers \(0 to 2\), and the run has 4"),
        ("0-1,1-5", 4, r"of 6 workers \(0 to 5\), and the run has 4"),
        ("0-1,1-2", 1, r"of 3 workers \(0 to 2\), and the run has 1"),
        ("torus", 7, "7 workers make no rectangle; use ring"),
        ("random:0", 4, "probability of an edge must be in"),
        ("random:x", 4, "'x' is no number"),
        ("random:0.01", 40, "100 draws among 40 workers all fell apart; make an edge likelier"),
        ("regular", 4, "say how many neighbours each has"),
        ("regular:3", 5, "5 workers cannot have 3 neighbours each"),
        ("regular:4", 4, "4 workers cannot have 4 neighbours each"),
    ],
)
def test_what_is_no_graph_or_falls_apart_is_refused_with_the_part_that_is_wrong(text, size, says):
    with pytest.raises(ConfigError, match=says):
        shape(text).among(size)
    with pytest.raises(ConfigError, match=says):
        graph(topology=text).among(size)


# -- mixing matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("size", [4, 6, 16])
def test_weights_sum_to_1_as_the_method_needs_them(name, size):
    made = shape(name).among(size)
    for number in range(len(made.rounds)):
        ones = torch.ones(size, dtype=torch.float64)
        mean = mean_matrix(made, keeping_the_mean(), number)
        torch.testing.assert_close(mean.sum(0), ones)
        torch.testing.assert_close(mean.sum(1), ones)
        torch.testing.assert_close(sum_matrix(made, keeping_the_sum(), number).sum(0), ones)
        assert (mean >= -1e-15).all()
        if made.both:
            torch.testing.assert_close(mean, mean.T)


def test_the_gap_of_a_ring_is_that_of_its_known_eigenvalues_and_shrinks_as_the_square_of_its_size():
    for size in (4, 8, 16, 32):
        rho = contraction([mean_matrix(shape("ring").among(size), keeping_the_mean(), 0)])
        assert rho == pytest.approx((1 + 2 * math.cos(2 * math.pi / size)) / 3)
    gap = lambda size: 1 - contraction([mean_matrix(shape("ring").among(size), keeping_the_mean(), 0)])  # noqa: E731
    assert gap(32) / gap(64) == pytest.approx(4, rel=0.02)


def test_a_complete_graph_and_one_peer_of_a_power_of_two_leave_no_deviation():
    complete = shape("complete").among(12)
    assert contraction([mean_matrix(complete, keeping_the_mean(), 0)]) == 0
    one = shape("one-peer").among(16)
    product = torch.eye(16, dtype=torch.float64)
    for number in range(4):
        product = mean_matrix(one, keeping_the_mean(), number) @ product
    torch.testing.assert_close(product, torch.full((16, 16), 1 / 16, dtype=torch.float64))


def test_what_is_said_of_a_graph_has_its_messages_and_its_gap():
    assert graph().among(16) == (
        "graph ring: 2 messages a round out of each; spectral gap 0.0507: deviations halve in 13 rounds"
    )
    assert push_sum().among(16) == (
        "graph one-peer: 1 message a round out of each, 4 rounds in turn; the mean is exact after 4 rounds"
    )
    assert graph(topology="complete").among(4).endswith("the mean is exact after 1 round")


GOOD = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]


def changed(*entries):
    rows = [list(row) for row in GOOD]
    for i, j, value in entries:
        rows[i][j] = value
    return rows


def test_a_matrix_may_be_given_in_rows_or_in_a_file(tmp_path):
    (tmp_path / "w.csv").write_text("\n".join(", ".join(map(str, row)) for row in GOOD))
    line = shape("0-1,1-2").among(3)
    for given in (GOOD, str(tmp_path / "w.csv")):
        weights = keeping_the_mean(given)
        weights.check(line)
        torch.testing.assert_close(mean_matrix(line, weights, 0), torch.tensor(GOOD, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (changed((2, 2, 0.65)), "row 2 sums to 0.9, wanted 1"),
        ([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.25, 0.75]], "column 0 sums to 0.75"),
        (changed((0, 0, 0.25), (0, 2, 0.25)), r"entry \(0, 2\) is 0.25, and graph .* has no edge from worker 2 to 0"),
        ([[0.5, 0.5], [0.5, 0.5]], "it is of 2 workers, and the run has 3"),
        (changed((0, 1, 1.5), (0, 0, -0.5)), r"entry \(0, 0\) is -0.5; all must be in \[0, 1\]"),
        ([[1.0], [1.0, 0.0]], "not square: row 0 has 1 entries, and there are 2 rows"),
        ("metropolsi", "did you mean 'metropolis'"),
        ("nowhere.csv", "nowhere.csv cannot be read"),
        ([["a"]], "wanted 'metropolis', a file, or rows of numbers"),
    ],
)
def test_a_matrix_that_would_move_the_mean_is_refused_with_the_place(rows, says):
    with pytest.raises(ConfigError, match=says):
        graph(topology="0-1,1-2", weights=rows).among(3)


def test_a_matrix_for_both_ways_must_be_symmetric_and_one_for_a_circle_need_not_be():
    cyclic = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]]
    with pytest.raises(ConfigError, match=r"not symmetric: entry \(0, 1\) is 0.3, entry \(1, 0\) 0.2"):
        graph(topology="complete", weights=cyclic).among(3)
    one_way = [[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    assert "spectral gap" in graph(topology="0>1,1>2,2>0", weights=one_way).among(3)


def test_shares_of_push_sum_must_sum_to_1_down_a_column_only():
    dealt = [[0.5, 0.0, 0.4], [0.5, 0.5, 0.0], [0.0, 0.5, 0.6]]
    assert "spectral gap" in push_sum(topology="0>1,1>2,2>0", weights=dealt).among(3)
    with pytest.raises(ConfigError, match=r"row 0 sums to 0\.9"):
        graph(topology="0>1,1>2,2>0", weights=dealt).among(3)
    with pytest.raises(ConfigError, match=r"column 2 sums to 0\.9"):
        push_sum(topology="0>1,1>2,2>0", weights=[*dealt[:2], [0.0, 0.5, 0.5]]).among(3)
    kept = [[0.0, 0.0, 0.4], [1.0, 0.5, 0.0], [0.0, 0.5, 0.6]]
    with pytest.raises(ConfigError, match="worker 0 keeps nothing of its own"):
        push_sum(topology="0>1,1>2,2>0", weights=kept).among(3)


def test_uneven_one_way_edges_are_for_push_sum_alone():
    uneven = "0>1,1>2,2>0,0>2"
    with pytest.raises(
        ConfigError, match=r"worker 0 has 1 in and 2 out: none of its weights keep the mean; use push_sum"
    ):
        graph(topology=uneven).among(3)
    assert "spectral gap" in push_sum(topology=uneven).among(3)

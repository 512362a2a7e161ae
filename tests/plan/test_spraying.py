"""Splitting flows: the theorem in fractions, and completion as fast as ideal spraying in the simulator."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.fabric import leaf_spine
from laconic.plan.flows import bound, in_rounds, play
from laconic.plan.spraying import again, ethereal, hashed, split, split_by, sprayed


def loads(pieces, paths):
    found = [Fraction(0)] * paths
    for (path, share), count in Counter((piece.path, piece.share) for piece in pieces).items():
        found[path] += share * count
    return found


def test_every_path_carries_the_same_and_no_more_is_split_than_must_be():  # the theorem, for all n and s up to 64
    for flows in range(65):
        for paths in range(1, 65):
            pieces = split(flows, paths)
            # Every share is one over a number: a path's load is a sum of so many of each.
            counts = Counter((piece.path, piece.share.denominator) for piece in pieces)
            found = [sum(Fraction(counts[path, d], d) for d in {d for _, d in counts}) for path in range(paths)]
            assert set(found) == {Fraction(flows, paths)}
            left = flows % paths
            parts = paths // math.gcd(left, paths) if left else 1
            assert len(pieces) == flows + left * (parts - 1)
            shares = Counter(piece.flow for piece in pieces)
            assert sorted(shares) == list(range(flows))
            assert all(count == (1 if flow < flows - left else parts) for flow, count in shares.items())
            if left == 0:
                assert len(pieces) == flows
            if math.gcd(flows, paths) == 1 and left:
                assert {piece.share.denominator for piece in pieces if piece.flow >= flows - left} == {paths}


@given(flows=st.integers(0, 40), paths=st.integers(1, 20), most=st.integers(1, 8))
def test_with_few_parts_no_two_paths_differ_by_more_than_one_flow(flows, paths, most):
    pieces = split(flows, paths, most)
    found = loads(pieces, paths)
    assert max(found) - min(found) <= max([piece.share for piece in pieces[flows - flows % paths :]], default=0)
    assert max(Counter(piece.flow for piece in pieces).values(), default=1) <= most
    assert sum(found) == flows


@given(flows=st.integers(0, 30), capacities=st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_unlike_paths_carry_their_share_and_few_flows_are_split(flows, capacities):
    pieces = split_by(flows, capacities)
    assert loads(pieces, len(capacities)) == [Fraction(flows * c, sum(capacities)) for c in capacities]
    assert len(pieces) <= flows + len(capacities) - 1 if flows else not pieces
    whole = split_by(flows, capacities, Fraction(1, 2))
    assert sum(loads(whole, len(capacities))) == flows
    assert all(piece.share >= Fraction(1, 2) or Counter(p.flow for p in whole)[piece.flow] == 1 for piece in whole)


def all_to_all(workers, nbytes):
    return [(a, b, nbytes) for a in range(workers) for b in range(workers) if a != b]


def shift(workers, hosts, nbytes):
    return [(w, (w + hosts) % workers, nbytes) for w in range(workers)]


@pytest.mark.parametrize("pattern", ["all_to_all", "shift"])
@pytest.mark.parametrize("spines", [3, 4, 5])
def test_it_ends_when_ideal_spraying_does_and_hashing_later(pattern, spines):
    leaves, hosts = 4, 7
    fabric = leaf_spine(leaves, hosts, spines, host=10.0, spine=10.0)
    leaf = [w // hosts for w in range(leaves * hosts)]
    rows = all_to_all(28, 60.0) if pattern == "all_to_all" else shift(28, hosts, 60.0)

    def seconds(dealt):
        sent = in_rounds(28, [dealt])
        return play(fabric, sent, together=True).seconds, bound(fabric, sent)

    ideal, least = seconds(sprayed(rows, leaf, range(spines)))
    ours, our_bound = seconds(ethereal(rows, leaf, range(spines), least=0))
    assert our_bound == pytest.approx(least, rel=1e-9)
    assert ideal == pytest.approx(least, rel=1e-9)
    if (pattern, spines) == ("all_to_all", 5):
        # Hosts' links are nearly as busy as the spines' here. Parts of a flow have the rate of a whole one, are through
        # sooner, and leave rates uneven: the busiest link is as busy as with spraying, but not until the end.
        assert ours == pytest.approx(ideal * 1.0612, rel=1e-3)
    else:
        assert ours == pytest.approx(ideal, rel=1e-9)
    assert seconds(hashed(rows, leaf, range(spines)))[0] > ours * 1.05


@pytest.mark.parametrize(("hosts", "nbytes"), [(1, 5e4), (3, 5e4), (3, 2e5)])
def test_messages_too_small_to_split_are_spread_over_all_pairs_of_leaves(hosts, nbytes):
    """By default no part is under 64 KiB. Dealt from path 0 on for each pair of leaves, one host each had one spine."""
    leaves, spines = 8, 4
    fabric = leaf_spine(leaves, hosts, spines, host=100.0, spine=1.0)
    leaf, rows = [w // hosts for w in range(leaves * hosts)], all_to_all(leaves * hosts, nbytes)
    busiest = [
        bound(fabric, in_rounds(leaves * hosts, [deal(rows, leaf, range(spines))]))
        for deal in (ethereal, sprayed, hashed)
    ]
    assert busiest[0] <= busiest[1] * 1.2  # 7 messages over 4 paths are 2 on one of them at best, 14 % more than 7 / 4
    assert busiest[0] < busiest[2]


def test_small_messages_over_unlike_paths_are_not_all_on_the_widest():
    leaf, rows = [0, 1] * 14, [(2 * k, 2 * k + 1, 5e4 + k) for k in range(14)]  # each of a size of its own
    dealt = ethereal(rows, leaf, range(3), [4, 2, 1])
    assert len(dealt) == 14
    assert np.bincount(dealt[:, 3].astype(int), minlength=3).tolist() == [8, 4, 2]


def test_three_flows_over_two_paths_take_three_quarters_of_what_whole_ones_take():
    fabric = leaf_spine(2, 3, 2, host=10.0, spine=1.0)
    leaf, rows = [0, 0, 0, 1, 1, 1], [(0, 3, 1e6), (1, 4, 1e6), (2, 5, 1e6)]
    whole = ethereal(rows, leaf, [0, 1], least=10**7)
    ours = ethereal(rows, leaf, [0, 1])
    times = [play(fabric, in_rounds(6, [dealt]), together=True).seconds for dealt in (whole, ours)]
    assert times == pytest.approx([2e6, 1.5e6])
    assert len(whole) == 3
    assert len(ours) == 4


def test_spines_of_unlike_rates_end_together():
    fabric = leaf_spine(2, 4, 3, host=100.0, spine=[4.0, 2.0, 1.0])
    leaf, rows = [0] * 4 + [1] * 4, [(w, w + 4, 70.0) for w in range(4)]
    ours = in_rounds(8, [ethereal(rows, leaf, range(3), [4, 2, 1], least=0)])
    assert bound(fabric, ours) == pytest.approx(4 * 70.0 / 7.0)
    assert play(fabric, ours, together=True).seconds == pytest.approx(4 * 70.0 / 7.0)
    assert bound(fabric, in_rounds(8, [ethereal(rows, leaf, range(3), least=0)])) > 1.5 * 4 * 70.0 / 7.0


def test_after_a_failure_what_is_left_of_the_dead_path_is_dealt_to_the_others():
    leaf, rows = [0] * 4 + [1] * 4, [(w, w + 4, 3e6) for w in range(4)]
    dealt = ethereal(rows, leaf, range(4))
    rest = again(dealt, dealt[:, 2] / 2, 2, leaf, range(4))
    loads = np.bincount(rest[:, 3].astype(int), rest[:, 2], 4)
    assert loads == pytest.approx([2e6, 2e6, 0.0, 2e6])
    unlike = ethereal(rows, leaf, range(4), [4, 2, 1, 1])
    rest = again(unlike, unlike[:, 2] / 2, 2, leaf, range(4), [4, 2, 1, 1])
    assert np.bincount(rest[:, 3].astype(int), rest[:, 2], 4) == pytest.approx(np.array([4, 2, 0, 1]) * 6e6 / 7)
    whole = again(dealt, dealt[:, 2] / 2, 2, leaf, range(4), least=10**7)
    assert len(whole) == 4
    assert (again(dealt, [0.0] * len(dealt), 2, leaf, range(4))).shape == (0, 4)
    with pytest.raises(ConfigError, match="path 0 was the last one"):
        again(dealt, dealt[:, 2], 0, leaf, [0])


def test_sizes_are_dealt_apart_within_a_leaf_nothing_is_split_and_what_is_wrong_is_said():
    leaf = [0, 0, 1, 1]
    mixed = ethereal([(0, 2, 4e6), (1, 3, 1e6), (0, 1, 1e6)], leaf, [0, 1])
    for size in (4e6, 1e6):
        own = mixed[(mixed[:, 2] == size / 2) & (mixed[:, 3] >= 0)]
        assert sorted(own[:, 3]) == [0, 1]
    assert [tuple(row) for row in mixed if row[3] < 0] == [(0, 1, 1e6, -1)]
    with pytest.raises(ConfigError, match="there is no path"):
        ethereal([(0, 2, 1.0)], leaf, [])
    with pytest.raises(ConfigError, match="every path needs a capacity above 0"):
        split_by(3, [1, 0])
    with pytest.raises(ConfigError, match="3 flows over 0 paths"):
        split(3, 0)

from itertools import islice

import numpy as np
import pytest

from laconic.errors import ConfigError
from laconic.workloads.shares import deal, deal_by_label, stream

LABELS = np.arange(1000) % 10


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 1000])
def test_shares_are_disjoint_and_cover_everything(workers):
    shares = [deal(1000, worker, workers, seed=5) for worker in range(workers)]
    assert sorted(np.concatenate(shares)) == list(range(1000))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("skew", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("workers", [1, 3, 7])
def test_skewed_shares_are_disjoint_and_cover_everything(workers, skew):
    shares = [deal_by_label(LABELS, worker, workers, 5, skew) for worker in range(workers)]
    assert sorted(np.concatenate(shares)) == list(range(1000))


def test_no_skew_deals_as_from_one_shuffled_deck():
    assert (deal_by_label(LABELS, 1, 4, 5, skew=0.0) == deal(1000, 1, 4, 5)).all()


def test_full_skew_gives_each_of_ten_workers_one_of_ten_labels():
    assert [set(LABELS[deal_by_label(LABELS, worker, 10, 5, 1.0)]) for worker in range(10)] == [{i} for i in range(10)]


def test_half_skew_leaves_half_of_each_share_mixed():
    own = [np.bincount(LABELS[deal_by_label(LABELS, worker, 10, 5, 0.5)], minlength=10).max() for worker in range(10)]
    assert all(35 <= count <= 75 for count in own)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 250])
def test_a_stream_passes_over_the_whole_share_again_and_again_in_full_batches(batch_size):
    share = np.arange(300, 400)
    drawn = list(islice(stream(share, batch_size, worker=0, seed=1), 1000 // batch_size))
    assert {len(places) for places in drawn} == {batch_size}
    passes = np.concatenate(drawn)[:900].reshape(-1, 100)
    assert all(sorted(one) == list(share) for one in passes)
    assert not (passes[0] == passes[1]).all()


def test_a_stream_depends_on_seed_and_worker_and_on_nothing_else():
    share = np.arange(50)
    first = [next(stream(share, 50, worker, seed)).tolist() for worker, seed in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert first[0] == first[1]
    assert first[0] != first[2]
    assert first[0] != first[3]


def test_more_workers_than_examples_are_refused():
    with pytest.raises(ConfigError, match="5 workers cannot share 4 examples"):
        deal(4, 0, 5, 0)


def test_a_skew_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"skew must be from 0 .* got 1\.5"):
        deal_by_label(LABELS, 0, 2, 0, 1.5)

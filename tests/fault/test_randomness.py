"""What a workload draws without saying so goes on after a restart as if there had been none."""

import json
import random

import numpy as np
import pytest
import torch

from laconic.errors import PacketError
from laconic.fault import randomness


def draws():
    return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist(), np.random.normal()]


def test_all_generators_go_on_where_they_were_also_from_json():
    randomness.seed(7)
    draws()
    kept = randomness.here()
    wanted = draws()
    draws()
    randomness.put_back(kept)
    assert draws() == wanted
    randomness.resume(kept.torch, None, json.loads(json.dumps(kept.plain())))
    assert draws() == wanted


def test_one_seed_starts_all_of_them_alike_and_another_otherwise():
    found = []
    for value in (1, 1, (1 << 63) - 1):
        randomness.seed(value)
        found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_what_draws_apart_neither_sees_what_others_draw_nor_is_seen_by_them():
    randomness.seed(3)
    alone = [draws() for _ in range(3)]
    randomness.seed(8)
    others = [draws() for _ in range(3)]
    randomness.seed(8)
    apart = randomness.Apart(3)
    mixed = []
    for _ in range(3):
        with apart:
            mixed.append(draws())
        mixed.append(draws())
    assert mixed[::2] == alone
    assert mixed[1::2] == others


@pytest.mark.parametrize("plain", [{}, {"python": [3, [1], None], "numpy": ["MT19937", [1], 0, 0, 0.0]}, None])
def test_a_damaged_state_is_refused(plain):
    with pytest.raises(PacketError, match="random generators is damaged"):
        randomness.resume(torch.get_rng_state(), None, plain)

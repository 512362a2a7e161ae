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
    randomness.put_back(kept._replace(plain=json.loads(json.dumps(kept.plain))))
    assert draws() == wanted


def test_one_seed_starts_all_of_them_alike_and_another_otherwise():
    found = []
    for value in (1, 1, (1 << 63) - 1):
        randomness.seed(value)
        found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_to_draw_again_leaves_no_trace():
    randomness.seed(3)
    first = draws()
    kept = randomness.here()
    wanted = draws()
    randomness.put_back(kept)
    with randomness.replaying(3):
        assert draws() == first
    assert draws() == wanted


@pytest.mark.parametrize("plain", [{}, {"python": [3, [1], None], "numpy": ["MT19937", [1], 0, 0, 0.0]}])
def test_a_damaged_state_is_refused(plain):
    with pytest.raises(PacketError, match="random generators is damaged"):
        randomness.put_back(randomness.here()._replace(plain=plain))

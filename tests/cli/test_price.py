"""What a method costs is reckoned on the clock of a simulation, and no machine's own changes it."""

import random
import threading
import time

import pytest

from laconic.cli.describe import price


def jittering(seed):
    """A clock that goes on by as much as a second whenever it is looked at, as under load."""
    drawn, lock, shown = random.Random(seed), threading.Lock(), [0.0]

    def clock():
        with lock:
            shown[0] += drawn.random()
            return shown[0]

    return clock


@pytest.mark.parametrize("name", ["uneven-diloco", "uneven-ddp", "hcef", "adaptive"])
def test_a_method_that_chooses_by_time_has_the_same_price_whatever_the_machines_clock(name, monkeypatch):
    told = price(name, 10**5, 3)
    assert "a step out of each" in told
    for seed in range(2):
        monkeypatch.setattr(time, "perf_counter", jittering(seed))
        assert price(name, 10**5, 3) == told

"""A probe of hosts whose links the kernel shapes: it finds the stated rates on the wire, and the file is emulated."""

import os
import subprocess
import sys

import pytest

from laconic.bench.testbed import Testbed, available
from laconic.cli.probe import Plan
from laconic.links.network import FRAMES, of_cluster, parse
from laconic.plan.cluster import read_cluster
from laconic.plan.measured_tables import read_measured
from laconic.plan.probing import start
from laconic.recipe import Recipe

pytestmark = [
    pytest.mark.root,
    pytest.mark.processes,
    pytest.mark.skipif(available() is not None, reason=str(available())),
]


def probed(network, out, seconds):
    names = [f"worker{rank}" for rank in range(network.workers)]
    plan = Plan(out, seconds, 1e9, again=True, looking={"workload": "adult", "options": {}, "compressors": ["half"]})
    found = start.in_testbed(network, plan.work(names, "testbed"), lambda sentence: None)
    plan.finish(names, read_measured(found, names), "")
    return read_cluster(out)


def test_shaped_rates_are_found_within_a_twentieth_each_way_and_each_link(tmp_path):
    network = parse("40mbit", 3, ["1:40mbit/8mbit", "0-2:4mbit"])
    cluster = probed(network, tmp_path / "c.toml", 30)
    found = of_cluster(cluster, 3)
    for a in range(3):
        for b in range(3):
            if a != b:
                assert found.link(a, b).up * FRAMES == pytest.approx(network.link(a, b).up, rel=0.05), (a, b)
                assert found.link(a, b).latency < 0.02  # of a busy machine; benchmarks/probe.py has an idle one's
                assert cluster.measured.links[f"worker{a}", f"worker{b}"].frames == pytest.approx(FRAMES, abs=1e-4)
    assert cluster.machines[1].up * FRAMES == pytest.approx(1e6, rel=0.05)


def test_delays_are_found_one_way_and_the_file_can_be_emulated(tmp_path):
    cluster = probed(parse("20mbit,15ms", 2, ["1:20mbit,5ms"]), tmp_path / "c.toml", 12)
    there, back = cluster.line(*cluster.machines), cluster.line(*reversed(cluster.machines))
    assert 0.014 < there.latency < 0.027  # what a busy machine adds; benchmarks/probe.py has an idle one's
    assert 0.004 < back.latency < 0.017
    assert there.latency - back.latency > 0.003
    recipe = Recipe("adult", on="testbed", cluster=str(tmp_path / "c.toml"), steps=1).checked()
    emulated = recipe.network()
    assert emulated.link(0, 1).up == pytest.approx(20e6 / 8, rel=0.05)
    assert emulated.link(0, 1).latency == there.latency


def test_workers_that_were_started_elsewhere_name_their_machines_and_worker_0_writes_the_file(tmp_path):
    # Hosts of their own, with names of their own, and the environment that torchrun sets.
    words = "hostname host$RANK && exec \"$0\" -c 'from laconic.cli import main; main()' probe "
    words += "--out c.toml --seconds 4 --workload adult --compressors half --bytes 20MB"
    argv = ["unshare", "--uts", "sh", "-c", words, sys.executable]
    folders = [tmp_path / str(rank) for rank in range(2)]
    with Testbed(parse("20mbit", 2)) as bed:
        workers = []
        for rank, folder in enumerate(folders):
            folder.mkdir()
            place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            workers.append(bed.popen(rank, argv, env=os.environ | place, cwd=folder, **pipes))
        said = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert "2 links to measure: sends at most" in said[0]
    cluster = read_cluster(folders[0] / "c.toml")
    assert [machine.name for machine in cluster.machines] == ["host0", "host1"]
    assert cluster.line(*cluster.machines).bandwidth * FRAMES == pytest.approx(20e6 / 8, rel=0.05)
    assert not (folders[1] / "c.toml").exists()

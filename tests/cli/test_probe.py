"""``laconic probe`` as it is typed: files that train reads, refusals in a sentence, and hosts over ssh."""

import io
import os
import stat
import subprocess
import sys

import pytest

from laconic.cli.probe import Plan
from laconic.plan.cluster import read_cluster
from laconic.plan.measured import LinkMeasured, MachineMeasured, Measured, Speed, Spread
from laconic.plan.probing.machine import counted
from laconic.plan.probing.refine import refined
from laconic.plan.writing import write_cluster
from laconic.workloads import load
from tests.here import MINE
from tests.links.workers import free_port

QUICK = ("--seconds", "4", "--compressors", "half", "--workload", "adult")
# Stands in for ssh: runs on this machine what would be run on the other.
SSH = """#!/bin/sh
if [ "$1" = -G ]; then echo "hostname 127.0.0.1"; exit; fi
shift 4
case "$1" in *nowhere) echo "ssh: connect to host nowhere port 22: No route to host" >&2; exit 255;; esac
shift
exec sh -c "$*"
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ssh"
    script.write_text(SSH)
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.processes
def test_a_probe_of_paced_links_finds_them_and_training_reads_its_file(laconic, tmp_path):
    argv = ("probe", "--workers", 2, "--link", "40mbit,5ms", "--link-of", "1:20mbit/8mbit,20ms", "--out", "c.toml")
    status, said, errors = laconic(*argv, *QUICK)
    assert status == 0, errors
    assert "2 machines, 2 links to measure: sends at most" in said
    cluster = read_cluster(tmp_path / "c.toml")
    there, back = cluster.line(*cluster.machines), cluster.line(*reversed(cluster.machines))
    assert there.bandwidth == pytest.approx(20e6 / 8, rel=0.05)
    assert back.bandwidth == pytest.approx(8e6 / 8, rel=0.05)
    assert (there.latency, back.latency) == pytest.approx((0.005, 0.02), abs=0.003)
    found = cluster.measured.machines["worker0"]
    assert found.flops > 1e6
    assert found.step.samples >= 3
    assert found.compressors["half"].nbytes == pytest.approx(0.5, abs=0.01)
    assert cluster.measured.on == "paced"
    run = ("train", "adult", "--cluster", "c.toml", "--simulate", "--steps", 2, "--out", "run")
    status, _, errors = laconic(*run)
    assert status == 0, errors


def known_well(folder, name, work):
    link = LinkMeasured(Spread((1e6,) * 3), latency=Spread((0.01,)))
    speed = Speed(Spread((1e9,)), Spread((1e9,)), 0.5)
    machine = MachineMeasured(8e9, name, work, 32, step=Spread((0.001,) * 3), compressors={"half": speed})
    names = ("worker0", "worker1")
    found = Measured({names: link, names[::-1]: link}, dict.fromkeys(names, machine))
    write_cluster(folder / "c.toml", refined(None, None, found, "c"))


def test_what_a_file_knows_well_is_not_probed_again(laconic, tmp_path):
    known_well(tmp_path, "adult", counted(load("adult", {})))
    before = (tmp_path / "c.toml").read_text()
    status, said, errors = laconic("probe", "--workers", 2, "--link", "100mbit", "--out", "c.toml", *QUICK)
    assert (status, errors) == (0, "")
    assert said == "c.toml knows these 2 machines well; --again measures them all the same\n"
    assert (tmp_path / "c.toml").read_text() == before


def test_a_step_is_known_by_its_size_and_a_workload_of_ones_own_by_its_name(tmp_path):
    names = ["worker0", "worker1"]

    def looked(workload, **options):
        looking = {"workload": workload, "options": options, "compressors": ["half"]}
        return not Plan(tmp_path / "c.toml", 20.0, 1e9, False, looking).work(names, "paced")["looking"]["workload"]

    known_well(tmp_path, "shakespeare", counted(load("shakespeare", {})))
    assert looked("shakespeare")
    assert not looked("shakespeare", batch_size=3)
    own = load(MINE, {})
    known_well(tmp_path, own.name, counted(own))
    assert looked(str(MINE))


@pytest.mark.processes
def test_hosts_are_probed_over_ssh(laconic, tmp_path, ssh):
    hosts = ("attic", "user@cellar", "--python", sys.executable, "--port", free_port())
    status, said, errors = laconic("probe", *hosts, "--out", "home.toml", "--bytes", "20MB", *QUICK)
    assert status == 0, errors
    assert "sends at most" in said
    cluster = read_cluster(tmp_path / "home.toml")
    assert [machine.name for machine in cluster.machines] == ["attic", "cellar"]
    assert cluster.measured.nbytes <= 20e6
    assert cluster.line(*cluster.machines).bandwidth > 1e7  # this machine's loopback


@pytest.mark.processes
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (
            ("attic", "nowhere"),
            "nowhere cannot be reached by ssh: ssh: connect to host nowhere port 22: No route to host",
        ),
        (("attic", "cellar", "--python", "/bin/false"), "laconic does not start on"),
    ],
)
def test_a_host_that_cannot_take_part_is_named(laconic, ssh, argv, told):
    status, _, errors = laconic("probe", *argv, "--port", free_port(), *QUICK)
    assert status == 2
    assert told in errors.replace("\n", " ")


@pytest.mark.processes
def test_under_torchrun_worker_0_writes_the_file_and_two_on_one_machine_are_refused(tmp_path):
    argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--no-python"]
    argv += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", sys.executable, "-c"]
    argv += ["from laconic.cli import main; main()", "probe", "--out", str(tmp_path / "c.toml"), *QUICK, "--yes"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=80, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "start one on each machine" in done.stderr


def test_what_to_type_where_there_is_no_ssh_is_printed(laconic, monkeypatch):
    status, said, _ = laconic("probe", "attic", "user@cellar", "--print", "--bytes", "50MB", "--out", "home.toml")
    assert status == 0
    first, second, last = said.splitlines()
    assert first.startswith("attic: torchrun --nnodes=2 --node-rank=0 --nproc-per-node=1 --master-addr=attic")
    assert second.startswith("cellar: torchrun --nnodes=2 --node-rank=1")
    assert "laconic probe --out home.toml --seconds 60 --bytes 50MB" in second
    assert last == "The file is written on attic."
    monkeypatch.setenv("PATH", "")
    status, _, errors = laconic("probe", "attic", "cellar", *QUICK)
    assert (status, "there is no ssh on this machine" in errors) == (2, True)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--workers", 0), "workers must be"),
        (("--workers", 1), "a link has two ends, and there is 1 machine"),
        (("attic", "attic"), "two workers are on attic"),
        (("attic",), "a link has two ends"),
        (("attic", "cellar", "--link", "5mbit"), "hosts have their own"),
        (("attic", "cellar", "--on", "testbed"), "hosts have their own"),
        (("attic", "cellar", "--testbed"), "hosts have their own"),
        (("attic", "cellar", "--workers", 5), "hosts have their own"),
        (("--python", "python3.12"), "--python and --port are for HOSTS"),
        (("--port", 5), "--python and --port are for HOSTS"),
        (("--testbed", "--on", "paced"), "--testbed is the same as --on testbed, and --on paced is given too"),
        (("--bytes", "200"), "'200' is no size; write it with its unit"),
        (("--", "-oProxyCommand=x", "cellar"), "'-oProxyCommand=x' is no host"),
        (("--print",), "name them"),
        (("--bytes", "100kB"), "2 links measured once take at least 623 kB, and the limit is 100 kB; raise --bytes"),
        (("--bytes", "many"), "'many' is no size; write it with its unit"),
        (("--seconds", 0.1), "--seconds must be from 1 to a million, got 0.1"),
        (("--workers", 20, "--seconds", 5), "380 links measured once take at least"),
        (("--workers", 5000), "5000 workers are too many for this machine"),
        (("--on", "simulated"), "a simulated link needs no measuring"),
        (("--on", "group", "--link", "5mbit"), "leave the links out"),
        (("--link", "fast"), "'fast' is not a rate"),
        (("--workload", "shakespear"), "did you mean 'shakespeare'?"),
        (("--compressors", "half,tokp"), "did you mean 'topk'?"),
        (("--out", "no/such/c.toml"), "there is no folder no/such"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_anything_is_sent(laconic, argv, told):
    status, _, errors = laconic("probe", *argv)
    assert status == 2
    assert told in errors.replace("\n", " ")


def test_a_file_that_is_no_cluster_is_not_overwritten(laconic, tmp_path):
    (tmp_path / "c.toml").write_text("x = 1\n")
    status, _, errors = laconic("probe", "--out", "c.toml")
    assert status == 2
    assert "unknown key 'x'" in errors
    assert (tmp_path / "c.toml").read_text() == "x = 1\n"


def test_nothing_is_sent_to_hosts_when_the_answer_is_no(laconic, ssh, monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    monkeypatch.setattr("laconic.plan.probing.start.over_ssh", lambda *_: pytest.fail("it was sent"))
    status, said, _ = laconic("probe", "attic", "cellar", *QUICK)
    assert status == 1
    assert "sends at most" in said
    assert "Send that much?" in said
    assert not (tmp_path / "cluster.toml").exists()

"""Whatever a user gets wrong is answered by a sentence on stderr and exit status 2, before any process starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from laconic import launch
from laconic.bench import compare as comparing
from laconic.bench import testbed as beds
from laconic.cli import main
from laconic.plan.cluster import SHIPPED
from tests.here import MINE

WORKLOAD = """
import torch
from torch import nn
def make_model(): return nn.Linear(2, 1)
def batches(split, worker, workers, seed):
    while True: yield torch.ones(4, 2)
def loss(model, batch): return model(batch).mean()
"""


@pytest.fixture
def laconic(monkeypatch, capsys, tmp_path):
    """Run a command line here, in an empty folder; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["laconic", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def refused(laconic, monkeypatch):
    """Run a command line that must be refused with nothing started; gives what stderr says."""

    def never(*argv, **_):
        raise AssertionError(f"{argv} was started")

    def run(*argv):
        monkeypatch.setattr(subprocess, "Popen", never)
        status, out, told = laconic(*argv)
        assert status == 2
        assert out == ""
        assert "Traceback" not in told
        return " ".join(told.split())

    return run


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        ("trian adult", "Did you mean 'train'"),
        ("train adult --methd ddp", "--method"),
        ("train adult --workers x", "Invalid value for '--workers'"),
        ("train", "name a workload (shakespeare, fashion, adult, or a file), a --recipe or a --resume"),
        ("train adlt", "unknown workload 'adlt'; did you mean 'adult'"),
        ("train none.py", "none.py does not exist"),
        ("train adult --method dilco", "unknown method 'dilco'; did you mean 'diloco'"),
        ("train adult --method diloco --set evry=3", "unknown setting of diloco 'evry'; did you mean 'every'"),
        ("train adult --option bach_size=3", "unknown option of adult 'bach_size'; did you mean 'batch_size'"),
        ("train adult --option batch_size=many", "option batch_size must be a whole number such as 128, got 'many'"),
        ("train adult --option batch_size=0", "batch_size must be"),
        ("train adult --on testbd", "did you mean 'testbed'"),
        ("train adult --seconds 3 --steps 3", "ends by one of seconds, tokens and steps"),
        ("train adult --steps 0", "steps must be positive, got 0"),
        ("train adult --seconds -1", "seconds must be positive"),
        ("train adult --lr -1", "lr must be positive"),
        ("train adult --timeout 0", "timeout must be positive"),
        ("train adult --save-every 0", "save_every must be at least 1"),
        ("train adult --workers 0", "workers must be at least 1"),
        ("train adult --workers 1000000000000", "1000000000000 workers are too many for this machine's"),
        ("train adult --simulate --workers 1000000000000", "simulated workers are too many; use at most 2048"),
        ("compare adult -m ddp --workers 1000000000000", "1000000000000 workers are too many for this machine's"),
        ("methods ddp --workers 1000000000000", "methods: --workers must be from 1 to 2048, got 1000000000000"),
        ("train adult --link fast", "is not a rate; write bits a second, such as 20mbit"),
        ("train adult --link 20mbit --link-of 7:5mbit", "worker 7 of 2; they count from 0"),
        ("train adult --link-of 1:5mbit", "say the others' with link, such as 100mbit"),
        ("train adult --cluster aws10 --link-of 0-1:5mbit", "leave it out, or change the cluster's file"),
        ("train adult --method diloco --set every=soon", "every must be a whole number of at least 1, got 'soon'"),
        ("train adult --method topk --set density=2", "density must be in (0, 1], got 2; it is a fraction"),
        ("train adult --method every_step(ring(topk()))", "use everyone(topk) or ring(random_k())"),
        ("train adult --method diloco(pairs())", "use noloco(), which is made for pairs"),
        ("train adult --method noloco --set compress=topk", "use int8 or half"),
        ("train adult --method streaming-diloco --set mixing=2", "mixing must be in [0, 1], got 2"),
        ("train adult --method streaming-diloco", "3 fragments, but the model has 2 blocks"),
        ("train adult --method ddp --set combine=median", "unknown part 'median'; did you mean 'mean'"),
        ("train adult --recipe none.toml", "none.toml: cannot be read"),
        ("train --resume .", "there is no recipe.toml in it, so it is no run folder"),
        ("compare adult --methods ddp,dilco", "did you mean 'diloco'"),
        ("compare adult --methods ddp,ddp", "names one twice"),
        ("compare adult --methods ddp --set every=3", "none of ddp has a setting 'every'"),
        ("compare adult --methods ddp --seconds 3 --tokens 3", "ends by one of"),
        ("compare", "compare: name a workload (shakespeare, fashion, adult, or a file), or a --resume"),
        ("compare adult -m ddp,diloco --sweep evry=5,9", "diloco has a setting 'evry'; did you mean 'every'?"),
        ("compare adult -m ddp,diloco --sweep every=5,soon", "diloco every=soon: diloco: every must be a whole number"),
        ("compare adult -m ddp --sweep every=5,9", "none of ddp has a setting 'every'"),
        ("compare adult -m diloco --sweep every=", "a value is empty; write values between commas"),
        ("compare adult -m diloco --seeds 0", "--seeds must be at least 1, got 0"),
        ("compare adult -m diloco --seeds 400", "1 way x 400 seeds are 400 runs, about 3.3 h of training"),
        ("compare --resume .", "there is no plan.json in it"),
        ("compare adult --resume .", "--resume goes on with the comparison as it was, so workload cannot be given"),
        ("compare --resume . --seeds 2", "so seeds cannot be given"),
        ("report . --picture a.png", "--picture a.png: only .svg is written"),
        ("report . --picture a.svg --out b.html", "--out is the page and --picture the picture; give one of them"),
        ("methods dgx", "did you mean 'dgc'"),
        ("report none", "none: there is no such folder"),
        ("report .", "is no run: metrics.jsonl is missing"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_answered_by_a_sentence(argv, wanted, refused):
    assert wanted in refused(*argv.split())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("def loss", "def los"), "lacks loss; wanted: loss(model, batch) -> scalar tensor"),
        ((".mean()", ""), "loss must return a single number, got a tensor of shape [4, 1]"),
        ((".mean()", ".mean().item()"), "loss must return a tensor, got a float"),
        (("4, 2", "4, 3"), "loss failed at line 7"),
        (("nn.Linear(2, 1)", "3"), "make_model must return an nn.Module, got a int"),
        (("import torch", "import torh"), "cannot be imported at line 2"),
        (("def make_model", "def make_model(:"), "SyntaxError"),
        (("while True: yield torch.ones(4, 2)", "return iter([])"), "yields nothing"),
        ((".mean()", ".mean() / 0"), "the loss of the very first batch is"),
    ],
)
def test_a_workload_that_cannot_be_trained_is_refused_with_its_own_error(change, wanted, refused, tmp_path):
    (tmp_path / "theirs.py").write_text(WORKLOAD.replace(*change))
    assert wanted in refused("train", "theirs.py", "--steps", 3)


def test_an_optimizer_without_momentum_to_give_is_refused_where_the_method_carries_it(refused, tmp_path):
    lbfgs = "def make_optimizer(model): return torch.optim.LBFGS(model.parameters())\n"
    (tmp_path / "theirs.py").write_text(WORKLOAD + lbfgs)
    assert "LBFGS has no momentum to hand over" in refused("train", "theirs.py", "--method", "dgc", "--steps", 3)


def test_more_workers_than_the_machine_can_take_are_refused(refused, monkeypatch):
    cores = os.cpu_count()
    told = refused("train", "adult", "--workers", 10_000)
    assert f"10000 workers are too many for this machine's {cores} cores; use at most {16 * cores}" in told
    monkeypatch.setattr(launch, "_free_memory", lambda: 1 << 30)
    told = refused("train", "adult", "--workers", 16)
    assert "16 workers need about 5.5 GiB of memory, 1.0 GiB are free; use fewer workers or a smaller model" in told


def test_a_full_disk_is_refused(refused, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda place: usage)
    assert "out: needs 16 MiB for checkpoints, 1 MiB are free" in refused("train", "adult", "--out", "out")
    assert "out: needs 16 MiB for checkpoints, 1 MiB are free" in refused(
        "compare", "adult", "--out", "out", "-m", "ddp"
    )


def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run: cannot be written: Not a directory" in refused("train", "adult", "--out", "file/run")


def test_a_folder_that_holds_a_run_is_not_written_over(refused, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "holds a run already (metrics.jsonl); choose another folder" in refused("train", "adult", "--out", ".")


def test_a_port_that_cannot_be_used_is_refused(refused):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        told = refused("train", "adult", "--port", port)
    assert f"port {port} cannot be used: Address already in use; choose another, or none" in told
    assert "ports go from 1 to 65535" in refused("train", "adult", "--port", 99_999)
    assert not os.path.exists("runs/adult-ddp-1/log.txt")


def test_a_testbed_without_root_is_refused_and_paced_is_named(refused, monkeypatch):
    monkeypatch.setattr(beds, "available", lambda: "a testbed needs root, and this is user 1000")
    told = refused("compare", "adult", "--methods", "ddp", "--on", "testbed")
    assert "on=testbed: a testbed needs root, and this is user 1000; on=paced holds links to a rate without" in told
    assert "a testbed needs root" in refused("testbed", "--", "true")


def test_a_testbed_of_absurdly_many_hosts_is_refused(refused, monkeypatch):
    monkeypatch.setattr(beds, "available", lambda: None)
    assert "workers must be at most 100000" in refused("testbed", "--workers", 10**12, "--", "true")
    assert "it makes from 1 to 250 hosts" in refused("testbed", "--workers", 251, "--", "true")


def test_resuming_says_what_is_missing_or_cannot_change(refused, tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "recipe.toml").write_text('workload = "adult"\nsteps = 3\n')
    assert "it holds no checkpoint of all 2 workers" in refused("train", "--resume", "run")
    assert "so method cannot be given; only its end may change" in refused("train", "--resume", "run", "-m", "dgc")
    assert "so workers cannot be given" in refused("train", "--resume", "run", "--workers", 3)
    assert "so every cannot be given" in refused("train", "--resume", "run", "--set", "every=3")


def test_what_is_given_beside_a_recipe_takes_the_place_of_what_it_says(refused, tmp_path):
    (tmp_path / "r.toml").write_text('workload = "adult"\nmethod = "diloco"\nworkers = 10000\nevery = 0\nsteps = 3\n')
    assert "every must be a whole number of at least 1, got 0" in refused("train", "--recipe", "r.toml", "-n", 2)
    assert "10000 workers are too many" in refused("train", "--recipe", "r.toml", "--set", "every=5")
    assert "9999 workers are too many" in refused("train", "--recipe", "r.toml", "-m", "ddp", "--workers", 9999)


def test_a_recipe_that_only_its_file_can_tell_is_run_as_it_stands(refused, tmp_path):
    (tmp_path / "r.toml").write_text(f'workload = "{MINE}"\nworkers = 3\nlink = "20mbt"\nsteps = 3\n')
    assert "link rate '20mbt' is not a rate" in refused("train", "--recipe", "r.toml")


def test_help_teaches_by_example(laconic):
    for command in ("train", "compare", "methods", "parts", "report", "testbed"):
        status, out, _ = laconic(command, "--help")
        assert status == 0
        assert f"  laconic {command} " in out, command
        assert max(map(len, out.splitlines())) <= 104
    status, out, _ = laconic("--help")
    assert status == 0
    assert all(f"  {command} " in out for command in ("train", "compare", "methods", "parts", "report", "testbed"))
    status, out, told = laconic()
    assert "Usage: laconic" in out + told


@pytest.mark.parametrize("wrong", [("--workers", "0"), ("--workers", "-1"), ("--params", "nan"), ("--params", "inf")])
def test_a_price_for_nobody_or_of_no_model_is_refused(laconic, wrong):
    status, _, told = laconic("methods", "ddp", *wrong)
    assert status == 2
    assert f"methods: {wrong[0]}" in told


class Begun(Exception):
    """In the place of a run: it has the recipe that would be run."""


@pytest.mark.parametrize(
    ("argv", "module"), [("train {} --steps 3", launch), ("compare {} -m ddp --tokens 99", comparing)]
)
def test_a_run_names_its_files_so_that_it_can_be_resumed_from_elsewhere(argv, module, laconic, tmp_path, monkeypatch):
    def begin(plan, *_, **__):
        raise Begun(plan.workload, plan.cluster)

    monkeypatch.setattr(module, module.__name__.rpartition(".")[2], begin)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "theirs.py").write_text(WORKLOAD)
    cluster = SHIPPED / "aws10.toml"
    (tmp_path / "mine" / "rooms.toml").write_text(cluster.read_text())
    for where, files in ((tmp_path / "mine", "theirs.py rooms.toml"), (tmp_path, "mine/theirs.py mine/rooms.toml")):
        monkeypatch.chdir(where)
        workload, rooms = files.split()
        monkeypatch.setattr(sys, "argv", ["laconic", *argv.format(workload).split(), "--cluster", rooms])
        with pytest.raises(Begun) as begun:
            main()
        assert begun.value.args == (str(tmp_path / "mine" / "theirs.py"), str(tmp_path / "mine" / "rooms.toml"))
    monkeypatch.setattr(sys, "argv", ["laconic", *argv.format("adult").split(), "--cluster", "aws10"])
    with pytest.raises(Begun) as begun:
        main()
    assert begun.value.args == ("adult", "aws10")

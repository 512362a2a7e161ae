"""How workers of a probe are heard: what was found, and of several errors the cause."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from laconic.errors import ConfigError, ProbeFailed
from laconic.plan.measured import MachineMeasured
from laconic.plan.probing import start, worker

SAY = "import json, os, signal, sys, time; work = json.loads(sys.stdin.readline()); say = lambda **what: print(json.dumps(what), flush=True); "  # noqa: E501
WORK = {"names": ["attic", "cellar"], "patience": 20.0}


def run(*scripts, hosts=(), patience=20.0):
    """What comes of workers that do as these scripts say."""
    told = []

    def starting(rank, env, **kw):
        return subprocess.Popen([sys.executable, "-I", "-S", "-c", SAY + scripts[rank]], env=env, **kw)

    return start._run(starting, WORK | {"patience": patience}, told.append, hosts), told


WAIT = "sys.stdin.read()"


def test_what_worker_0_found_is_returned_and_nobody_is_left():
    found, told = run("say(told='half'); say(found={'a': 1})", WAIT)
    assert (found, told) == ({"a": 1}, ["half"])


def test_what_is_no_line_of_ours_is_passed_over():
    for said in ("motd: welcome", "42", '"hi"', "[]", "null", '{"x": 1}'):
        assert run(f"print({said!r}); say(found={{}})", WAIT)[0] == {}


def test_an_error_without_a_word_on_peers_is_told():
    with pytest.raises(ProbeFailed, match="probe: attic: no room"):
        run("say(error='no room'); sys.exit(2)", WAIT)


def test_workers_have_one_secret_that_nobody_else_hears():
    found, _ = run("say(found={'secret': work['secret']})", WAIT)
    assert len(bytes.fromhex(found["secret"])) == 16
    asked = {}
    store = worker.Sealed(SimpleNamespace(set=asked.__setitem__, get=lambda key: key.encode()), found["secret"])
    store.set(worker.SECRET, "worker 0's own")
    store.set("laconic/address/0", "here 1")
    assert asked == {"laconic/address/0": "here 1"}
    assert (store.get(worker.SECRET), store.get("laconic/address/1")) == (
        found["secret"].encode(),
        b"laconic/address/1",
    )


def test_a_worker_runs_what_its_starter_said_and_not_what_it_is_ordered(monkeypatch):
    seen = {}
    monkeypatch.setattr(worker.machine, "look", lambda **given: seen.update(given) or MachineMeasured(memory=1.0))
    order = {"workload": "/tmp/theirs.py", "options": {"x": 1}, "compressors": [], "seconds": 1.0}
    mine = {"workload": "adult", "options": {}, "compressors": ["half"]}
    assert worker.look(mine, {**order, "sharing": 1, "rank": 0, "workers": 2}) == {"memory": 1.0}
    assert (seen["workload"], seen["options"], seen["compressors"]) == ("adult", {}, ["half"])


def test_a_host_that_ssh_would_take_as_an_option_is_refused():
    with pytest.raises(ConfigError, match="'-oProxyCommand=x' is no host"):
        start.over_ssh(["a", "-oProxyCommand=x"], "python3", 29400, WORK, print)


def test_the_cause_is_told_and_not_its_effect_on_the_others():
    with pytest.raises(ProbeFailed, match=r"probe: cellar: its disk is full"):
        run(
            "say(error='worker 1 is gone', peer=True); sys.exit(2)",
            "time.sleep(0.2); say(error='its disk is full', peer=False)",
        )
    with pytest.raises(ProbeFailed, match=r"probe: cellar ended: exit status -9"):
        run("say(error='worker 1 is gone', peer=True); sys.exit(2)", "os.kill(os.getpid(), signal.SIGKILL)")


def test_where_there_are_only_effects_the_workers_are_named_and_the_network_is_asked_about():
    with pytest.raises(
        ProbeFailed, match=r"worker 1 did not join .*worker 1 is cellar.* reach one another on any port"
    ):
        run("say(error='worker 1 did not join', peer=True); sys.exit(2)", WAIT)


def test_nobody_is_waited_for_for_ever():
    with pytest.raises(ProbeFailed, match=r"no word from attic for 0 s; it is given up"):
        run(WAIT, WAIT, patience=0.3)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "sys.stderr.write('ssh: Connection refused\\n'); sys.exit(255)",
            r"user@b cannot be reached by ssh: ssh: Connection",
        ),
        (
            "sys.stderr.write('No module named laconic\\n'); sys.exit(1)",
            r"laconic does not start on user@b: No module .*--python",
        ),
    ],
)
def test_a_host_that_does_not_start_is_told_by_its_name(script, told):
    with pytest.raises(ProbeFailed, match=told):
        run(WAIT, script, hosts=["user@a", "user@b"])


def test_commands_to_type_name_each_hosts_rank_and_where_they_meet():
    lines = start.by_hand(["user@a", "b"], 29400, ["--out", "my file.toml"]).splitlines()
    assert lines[1] == (
        "b: torchrun --nnodes=2 --node-rank=1 --nproc-per-node=1 --master-addr=a --master-port=29400 --no-python "
        "laconic probe --out 'my file.toml'"
    )

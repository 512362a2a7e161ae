import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from laconic.bench import netns
from laconic.bench import testbed as module
from laconic.bench.testbed import (
    FRAME_OVERHEAD,
    Testbed,
    available,
    clean,
    hosts_report,
    make_plan,
    run_everywhere,
)
from laconic.errors import ConfigError, TestbedError
from laconic.links.network import Connection, Network, parse

PYTHON = [sys.executable, "-I", "-S", "-c"]

RECEIVE = """
import socket, sys, time
port, skip, want = map(int, sys.argv[1:])
server = socket.create_server(("", port))
print("listening", flush=True)
connection, _ = server.accept()
got, start, buffer = 0, None, bytearray(1 << 18)
while got < skip + want:
    n = connection.recv_into(buffer)
    assert n, "the sender stopped early"
    got += n
    if start is None and got >= skip:  # past what the shapers let through at once
        start, before = time.perf_counter(), got
print((got - before) / (time.perf_counter() - start))
"""

SEND = """
import socket, sys
address, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection, block = socket.create_connection((address, port)), bytes(1 << 16)
while total > 0:
    connection.sendall(block[:total])
    total -= len(block)
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
"""

ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 5001))
print("listening", flush=True)
while True:
    data, sender = server.recvfrom(100)
    server.sendto(data, sender)
"""

ASK = """
import socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(5)
for _ in range(9):
    start = time.perf_counter()
    client.sendto(b"x", (sys.argv[1], 5001))
    client.recv(100)
    print(time.perf_counter() - start)
"""


@pytest.fixture(scope="session")
def machine():
    reason = available()
    if reason:
        pytest.skip(reason)


def root(test: Callable) -> Callable:
    return pytest.mark.root(pytest.mark.usefixtures("machine")(test))


def flow(testbed: Testbed, sender: int, receiver: int, rate: float, seconds: float = 0.8) -> float:
    """Bytes a second on the wire of one TCP flow, expected to be near ``rate``, after the bursts have passed."""
    port, skip, want = 5100 + 10 * sender + receiver, 200_000, int(rate * seconds)
    receive = [*PYTHON, RECEIVE, str(port), str(skip), str(want)]
    with testbed.popen(receiver, receive, stdout=subprocess.PIPE, text=True) as there:
        assert there.stdout.readline() == "listening\n"
        send = [*PYTHON, SEND, testbed.addresses[receiver], str(port), str(skip + want)]
        with testbed.popen(sender, send, stderr=subprocess.DEVNULL):
            return float(there.stdout.read()) * FRAME_OVERHEAD


def gets(testbed: Testbed, sender: int, receiver: int, rate: float) -> bool:
    """Whether one flow of three gets ``rate``: what else the machine does disturbs some of them."""
    return any(flow(testbed, sender, receiver, rate) == pytest.approx(rate, rel=0.05) for _ in range(3))


def round_trip(testbed: Testbed, one: int, other: int) -> float:
    """The median seconds of a small datagram there and back."""
    with testbed.popen(other, [*PYTHON, ECHO], stdout=subprocess.PIPE, text=True) as echo:
        assert echo.stdout.readline() == "listening\n"
        ask = testbed.popen(one, [*PYTHON, ASK, testbed.addresses[other]], stdout=subprocess.PIPE, text=True)
        times = sorted(map(float, ask.communicate(timeout=20)[0].split()))
        echo.kill()
    return times[len(times) // 2]


# -- rates and delays -------------------------------------------------------------------------------------------


@root
@pytest.mark.parametrize("megabits", [5, 20, 100])
def test_a_flow_gets_the_stated_rate(megabits):
    rate = megabits * 1e6 / 8
    with Testbed(Network((Connection(rate, rate),) * 2)) as testbed:
        assert gets(testbed, 0, 1, rate)


@root
def test_up_and_down_are_shaped_apart_and_so_is_one_direction_of_one_pair():
    with Testbed(parse("50mbit", 3, ["0:20mbit/8mbit", "1-2:4mbit"])) as testbed:
        assert gets(testbed, 0, 1, 1e6)  # 0's up
        assert gets(testbed, 1, 0, 2.5e6)  # 0's down
        assert gets(testbed, 1, 2, 5e5)  # the slow link
        assert gets(testbed, 2, 1, 6.25e6)  # its other direction


@root
def test_a_slow_link_and_the_rest_share_the_senders_rate():
    with Testbed(parse("20mbit", 3, ["0-1:4mbit"])) as testbed, ThreadPoolExecutor() as pool:
        start = time.perf_counter()
        slow, rest = pool.submit(flow, testbed, 0, 1, 5e5, 1.5), pool.submit(flow, testbed, 0, 2, 2e6, 0.7)
        assert rest.result() == pytest.approx(2e6, rel=0.08)
        sent, seconds = testbed.counters()[0].sent_bytes, time.perf_counter() - start
        assert slow.result() == pytest.approx(5e5, rel=0.08)
        assert sent <= 2.5e6 * seconds + 2 * (1 << 16)  # never more than its rate and the bursts


@root
def test_frames_are_late_by_the_stated_latency_and_a_links_own_replaces_it():
    with Testbed(parse("100mbit,30ms", 3, ["0-2:100mbit,10ms", "1:50mbit"])) as testbed:
        assert round_trip(testbed, 2, 0) == pytest.approx(0.040, abs=0.004)  # 30 there, 10 back
        assert round_trip(testbed, 2, 1) == pytest.approx(0.030, abs=0.004)  # worker 1 has no latency
        if testbed.delay == "relay":
            assert testbed.relay().held >= 9 * 3
            assert testbed.relay().late_mean < 0.005
            assert testbed.relay().lost == 0


@root
def test_a_delayed_flow_keeps_its_rate():
    with Testbed(parse("100mbit,5ms", 2)) as testbed:
        assert gets(testbed, 0, 1, 12.5e6)  # also through a relay, which is a process that others slow down
        sent, received = testbed.counters()
        assert 0 <= sent.sent_bytes - received.received_bytes <= 1514  # the last frame may still be on its way


# -- training inside --------------------------------------------------------------------------------------------

ALL_REDUCE = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
x = torch.full((1 << 20,), float(dist.get_rank() + 1))
dist.barrier()
print("ready", flush=True)
sys.stdin.readline()
dist.all_reduce(x)
assert (x == 3).all()
print("summed", flush=True)
sys.stdin.readline()
"""


@root
@pytest.mark.processes
def test_gloo_meets_inside_and_the_shapers_count_its_payload_and_headers():
    payload = 4 << 20
    with Testbed(parse("100mbit", 2)) as testbed:
        workers = []
        for rank in range(2):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            argv = [sys.executable, "-c", ALL_REDUCE]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers.append(testbed.popen(rank, argv, env=env, **pipes))
        assert [w.stdout.readline() for w in workers] == ["ready\n"] * 2
        before = testbed.counters()
        for worker in workers:
            print("go", file=worker.stdin, flush=True)
        assert [w.stdout.readline() for w in workers] == ["summed\n"] * 2
        after = testbed.counters()
        for old, new in zip(before, after, strict=True):
            # Two workers: each sends its half to be summed and the sum of the other half, the payload in all.
            assert new.sent_bytes - old.sent_bytes == pytest.approx(payload * FRAME_OVERHEAD, rel=0.06)
            assert new.received_bytes - old.received_bytes == pytest.approx(payload * FRAME_OVERHEAD, rel=0.06)
            assert new.sent_bytes - old.sent_bytes > payload
            assert new.sent_dropped == new.received_dropped == 0
            assert new.sent_packets - old.sent_packets >= payload // 1500
        for worker in workers:
            worker.communicate("end\n", timeout=20)
            assert worker.returncode == 0


@root
def test_run_everywhere_tells_each_host_its_rank_and_where_to_meet(tmp_path):
    script = (
        "import os, pathlib, sys; e = os.environ; "
        "pathlib.Path(sys.argv[1], e['RANK']).write_text(' '.join(e[k] for k in "
        "('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'GLOO_SOCKET_IFNAME', 'MINE')))"
    )
    with Testbed(parse("100mbit", 3)) as testbed:
        assert run_everywhere(testbed, [*PYTHON, script, str(tmp_path)], {**os.environ, "MINE": "x"}) == [0, 0, 0]
        report = hosts_report(testbed)
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == f"{rank} 3 0 10.77.0.1 29500 eth0 x"
        assert f"10.77.0.{rank + 1}" in report
    assert "100 Mbit/s" in report


@root
def test_run_everywhere_takes_commands_that_end_before_the_last_has_started():
    with Testbed(parse("1mbit", 40)) as testbed:
        assert run_everywhere(testbed, ["true"]) == [0] * 40
        assert 1 in run_everywhere(testbed, ["false"])
        assert [counter.worker for counter in testbed.counters()] == list(range(40))


@root
def test_run_everywhere_stops_the_rest_when_one_fails_and_kills_what_will_not_stop():
    script = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
if rank == 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 1:
    time.sleep(0.3)
    sys.exit(3)
time.sleep(60)
"""
    start = time.monotonic()
    with Testbed(parse("100mbit", 3)) as testbed:
        assert run_everywhere(testbed, [*PYTHON, script], grace=0.3) == [-15, 3, -9]
    assert time.monotonic() - start < 10


# -- nothing is left --------------------------------------------------------------------------------------------

OWNER = '''
import signal, subprocess, sys
from laconic.bench.testbed import Testbed
from laconic.links.network import parse

stray = """
import os, time
os.fork() or (os.setsid(), os.fork())
print(os.readlink("/proc/self/ns/net"), flush=True)
time.sleep(600)
"""
with Testbed(parse("10mbit,5ms", 2)) as testbed:
    keeper = testbed._keeper.pid
    for worker in range(2):
        p = testbed.popen(worker, [sys.executable, "-I", "-S", "-c", stray], stdout=subprocess.PIPE, text=True)
        spaces = {p.stdout.readline().strip() for _ in range(3)}
        print(*spaces, flush=True)
    print(testbed.name, keeper, flush=True)
    signal.pause()
'''


def remains(name: str, spaces: set[str]) -> list[str]:
    """Processes that carry the name, or are in one of the namespaces or hold it open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        links = []
        try:
            links = [os.readlink(f"/proc/{pid}/ns/net")]
            links += [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            pass  # it has ended, or closed a file, while we looked
        if spaces & set(links) or netns.mark_of(int(pid)) == name:
            found.append(pid)
    return found


def outside() -> str:
    """What the machine's own network looks like."""
    commands = (["ip", "netns", "list"], ["ip", "-o", "address"], ["ip", "-o", "route"], ["tc", "qdisc", "show"])
    # Without what changes by itself: the seconds that a leased address is still valid
    lines = [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands]
    return "\n".join(line.split("valid_lft")[0] for text in lines for line in text.splitlines())


def await_nothing(name: str, spaces: set[str]) -> None:
    deadline = time.monotonic() + 8
    while remains(name, spaces):
        assert time.monotonic() < deadline, f"left behind: {remains(name, spaces)}"
        time.sleep(0.02)


def start_owner() -> tuple[subprocess.Popen, str, set[str], int]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    lines = [owner.stdout.readline().split() for _ in range(3)]
    name, keeper = lines.pop()
    spaces = {space for line in lines for space in line}
    assert len(spaces) == 2
    assert len(remains(name, spaces)) >= 6
    return owner, name, spaces, int(keeper)


@root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_owner_is_ended_by(number):
    before = outside()
    owner, name, spaces, _ = start_owner()
    assert outside() == before  # nothing of it shows outside while it is up, either
    owner.send_signal(number)
    owner.stdout.close()
    status = owner.wait(10)
    assert status == {signal.SIGINT: -2, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    await_nothing(name, spaces)
    assert outside() == before


@root
def test_nothing_is_left_when_the_keeper_is_killed_and_clean_ends_what_two_kills_leave():
    owner, name, spaces, keeper = start_owner()
    os.kill(keeper, signal.SIGKILL)  # a descendant of ours, not reaped: the pid is its
    time.sleep(0.05)
    assert clean() == []  # the owner lives: its processes are not ours to end
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    assert remains(name, spaces)
    assert clean() == [name]
    await_nothing(name, spaces)


@root
def test_nothing_is_left_after_a_normal_end_an_exception_and_a_failed_start(monkeypatch):
    before, handler = outside(), signal.getsignal(signal.SIGTERM)
    testbed = Testbed(parse("10mbit", 2))
    processes = []

    def fail() -> None:
        with testbed:
            processes.append(testbed.popen(0, ["sleep", "60"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert processes[0].returncode == -signal.SIGTERM
    assert not remains(testbed.name, set())
    testbed.close()  # again: nothing happens
    with pytest.raises(TestbedError, match="not open"):
        testbed.counters()

    broken = Testbed(parse("10mbit", 2))
    monkeypatch.setattr(module, "_shaper", lambda device, rate: f"qdisc replace dev {device} root nonsense")
    with pytest.raises(TestbedError, match=r"`tc qdisc .* nonsense` was refused: .*unknown"), broken:
        pass
    assert broken._keeper is None
    assert outside() == before
    assert signal.getsignal(signal.SIGTERM) is handler


@root
def test_a_testbed_whose_keeper_is_gone_says_so_and_ends_its_processes():
    with Testbed(parse("10mbit", 2)) as testbed:
        stray = "import os, time; os.fork() or os.setsid(); print('up', flush=True); time.sleep(60)"
        process = testbed.popen(1, [*PYTHON, stray], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        testbed._keeper.kill()
        testbed._keeper.wait()
        with pytest.raises(TestbedError, match="has been killed"):
            testbed.popen(0, ["true"])
    assert not remains(testbed.name, set())
    process.stdout.close()


@root
def test_a_testbed_whose_relay_is_killed_ends_rather_than_go_on_without_delay():
    with (
        Testbed(parse("10mbit,5ms", 2)) as one,
        Testbed(Network((Connection(),) * 2, ((0, 1, Connection(1e6)),))) as two,
    ):
        process = one.popen(0, ["sleep", "60"])
        children = Path(f"/proc/{one._keeper.pid}/task/{one._keeper.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        one._keeper.wait(10)
        with pytest.raises(TestbedError, match="relay, has been killed"):
            one.counters()
        assert two.popen(0, ["true"]).wait(10) == 0  # another at the same time, with the same addresses


@root
def test_a_testbed_opens_in_a_thread_and_hosts_see_only_each_other():
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with Testbed(parse("10mbit", 2)) as testbed:
                argv = ["ip", "-o", "address"]
                text, _ = testbed.popen(1, argv, stdout=subprocess.PIPE, text=True).communicate(timeout=10)
                assert {line.split()[1] for line in text.splitlines()} == {"lo", "eth0"}
                assert "inet6" not in text
                assert "10.77.0.2/24" in text
                text, _ = testbed.popen(1, ["ip", "-o", "route"], stdout=subprocess.PIPE, text=True).communicate()
                assert "default" not in text
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


# -- what is refused, and what is planned; no root needed --------------------------------------------------------


@pytest.fixture
def two_cores_without_netem(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(module, "has_netem", lambda: False)


@pytest.mark.usefixtures("two_cores_without_netem")
@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (parse("1mbit", 251), "251 workers asked; it makes from 1 to 250"),
        (Network(()), "0 workers asked"),
        (parse("250mbit", 4), "together could send 1000 Mbit/s, and 2 cores carry 800 Mbit/s"),
        (Network((Connection(1e6, 0.0),) * 2), "worker 0 has down = 0.0 bytes/s"),
        (Network((Connection(float("nan"), 1e6),) * 2), "worker 0 has up = nan"),
        (Network((Connection(1e6, 1e6, -1.0),) * 2), "latency of -1.0 s; it must be from 0 to 10 s"),
        (Network((Connection(1e6, 1e6),) * 2, ((0, 2, Connection()),)), "link 0 -> 2 asked; there are 2 workers"),
        (Network((Connection(latency=0.03),) * 2), "no limit up; this kernel has no netem"),
        (parse("201mbit,1ms", 2), "delayed workers could send 402 Mbit/s together"),
        (parse("190mbit,9s", 2), "the relay holds 256 MiB"),
    ],
)
def test_what_cannot_be_carried_as_stated_is_refused(network, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Testbed(network)


def test_a_rate_above_a_quarter_of_the_loopback_is_refused():
    module.check_loopback(parse("100mbit", 2), loopback=50e6)
    with pytest.raises(ConfigError, match="100 Mbit/s, and this machine's loopback carries 320 Mbit/s"):
        module.check_loopback(parse("100mbit", 2), loopback=40e6)
    module.check_loopback(Network((Connection(),) * 2), loopback=1e6)  # unlimited promises nothing


def test_a_fast_downlink_that_nobody_can_fill_is_not_refused(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    Testbed(parse("1gbit/5mbit", 8))


def test_without_root_it_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs root" in available()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "needs Linux" in available()


@pytest.mark.usefixtures("machine")
@pytest.mark.root
def test_a_worker_that_does_not_exist_and_a_program_that_does_not_exist_are_refused():
    with Testbed(parse("10mbit", 2)) as testbed:
        with pytest.raises(ConfigError, match="no worker 2"):
            testbed.popen(2, ["true"])
        with pytest.raises(ConfigError, match="'no-such-program' is no program"):
            run_everywhere(testbed, ["no-such-program"])


def test_the_plan_shapes_both_ends_and_delays_by_netem_or_by_the_relay():
    network = parse("8mbit/4mbit,30ms", 3, ["0-2:1mbit,10ms", "1:8mbit"])
    relay, netem = make_plan(network, "relay"), make_plan(network, "netem")
    assert relay["tc"][0].startswith("qdisc replace dev w0 root handle 1: tbf rate 8000000bit burst 6000 ")
    assert "root handle 1: tbf rate 4000000bit burst 6000 " in relay["hosts"][2]["tc"][0]
    assert [host["delays"] for host in relay["hosts"]] == [
        {"all": 0.03, "some": {"024c61630003": 0.01}},
        None,
        {"all": 0.03, "some": {}},
    ]
    assert all(host["delays"] is None for host in netem["hosts"])
    assert any("parent 1:1 netem delay 30000us" in line for line in netem["hosts"][2]["tc"])
    assert any("handle 11: netem delay 10000us" in line for line in netem["hosts"][0]["tc"])
    assert not any("netem" in line for line in netem["hosts"][1]["tc"])


def test_a_process_start_time_tells_it_from_a_later_one_of_the_same_pid():
    assert netns.start_time(os.getpid()) > 0
    assert netns.start_time(os.getpid()) == netns.start_time(os.getpid())
    assert netns.start_time(1 << 30) == 0
    assert netns.mark_of(1 << 30) is None
    assert Path(netns.__file__).with_name("delay.py").exists()

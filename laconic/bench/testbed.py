"""N hosts on one Linux machine: network namespaces on a bridge, each connection shaped by the kernel.

A :class:`Testbed` turns a :class:`~laconic.links.network.Network` into hosts with addresses 10.77.0.1, 10.77.0.2, …
that exist only inside it. The bridge has a namespace of its own, so nothing outside changes: no device, no address,
no rule, no name. What leaves a worker is shaped on the worker's own device, what arrives at it on its port of the
bridge. :mod:`laconic.bench.netns` holds the namespaces and ends them whatever happens to us;
:mod:`laconic.bench.delay` holds frames for a link's latency where the kernel has no ``netem``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from laconic.bench import netns
from laconic.bench.delay import STATS, Stats
from laconic.errors import ConfigError, LaconicError, TestbedError
from laconic.links.network import FRAMES, UNLIMITED, Connection, Network

MOST_WORKERS = 250
INTERFACE = "eth0"
MASTER_PORT = "29500"
FRAME_OVERHEAD = FRAMES
"""Bytes on the wire for each byte of TCP payload: frames of 1514 bytes carry 1448 (Ethernet, IPv4, TCP with stamps)."""

BURST_SECONDS = 2e-3  # of its rate, that a shaper lets pass at once after a pause: as late as its timer may be
LEAST_BURST, MOST_BURST = 6000, 1 << 16  # bytes: a few frames, and the kernel's largest piece
PER_CORE = 400e6 / 8  # bytes a second, all workers together, that one core carries with gloo running on it
RELAY_MOST = 400e6 / 8  # bytes a second, all delayed workers together, that the relay passes on time
RELAY_HELD = 256 << 20  # bytes that may be on the way in the relay
SETUP_SECONDS = 60.0
GRACE_SECONDS = 3.0

_numbers = itertools.count()


@dataclass(frozen=True)
class Counter:
    """What the kernel's shapers say of one worker: bytes and packets with all headers, since the testbed was made.

    ``sent`` is what left through the worker's own shaper, ``received`` what left the bridge towards it, ``dropped``
    the packets lost because a shaper's queue was full. ``received_packets`` is None in a testbed with the delay relay:
    the kernel counts the bytes of a large segment that has passed a tap device rightly, but not how many packets
    it will be cut into.
    """

    worker: int
    sent_bytes: int
    sent_packets: int
    sent_dropped: int
    received_bytes: int
    received_packets: int | None
    received_dropped: int


def available() -> str | None:
    """None when a testbed can be made here, else the reason in a sentence."""
    if sys.platform != "linux":
        return f"a testbed needs Linux's network namespaces, and this is {sys.platform}"
    if os.geteuid() != 0:
        return f"a testbed needs root to make network namespaces, and this is user {os.geteuid()}"
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            return f"a testbed needs the program {tool!r}; install {package}"
    return _tried()


@functools.cache
def _tried() -> str | None:
    """Make the smallest testbed once: only that shows whether the kernel has, and allows, all that it takes."""
    try:
        with Testbed(Network((Connection(1e6, 1e6),) * 2, ((0, 1, Connection(up=1e5)),))):
            return None
    except LaconicError as error:
        return f"this machine refuses a testbed: {error}"


@functools.cache
def has_netem() -> bool:
    """Whether the kernel can delay by itself; tried on a queue in a namespace that ends with the trial."""
    trial = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(trial, capture_output=True, check=False, timeout=10).returncode == 0
    return False


def clean() -> list[str]:
    """End what testbeds left behind whose owner and keeper were both killed; returns their names.

    Needed only after that: a testbed whose owner alone is killed ends by itself. Processes are known by the mark
    they carry, and the namespaces end with them.
    """
    return netns.kill_leftovers()


class Testbed:
    """N hosts that the kernel joins as ``network`` says. A context manager: the hosts exist inside the ``with``.

    ``addresses`` are the workers' addresses; ``name`` is unique to this run and is carried by every process
    started inside, in ``LACONIC_TESTBED``. While it is open SIGTERM ends the main thread with SystemExit, so that
    ``with`` and ``finally`` blocks run, unless the program has a handler of its own.

    Raises: ConfigError for a network that this machine cannot carry honestly, on construction where possible;
            TestbedError on entering where the machine refuses a step.
    """

    __test__ = False  # for pytest: no test case

    def __init__(self, network: Network) -> None:
        self.delay = _delay_by(network)
        check(network, self.delay)
        self.network = network
        self.addresses = [address(worker) for worker in range(network.workers)]
        self.name = f"laconic-{os.getpid()}-{netns.start_time(os.getpid())}-{next(_numbers)}"
        self.congestion_control = _congestion_control()
        self._owner = os.getpid()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}
        self._processes: list[subprocess.Popen] = []
        self._restore: Any = None

    def __enter__(self) -> Testbed:
        self._handle_sigterm()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def popen(self, worker: int, argv: Sequence[str], **kw: Any) -> subprocess.Popen:
        """Start ``argv`` on a worker's host; ``kw`` is subprocess.Popen's. No shell is involved.

        The environment is ``kw["env"]``, else ours, and gets what torch.distributed needs to meet at worker 0:
        MASTER_ADDR, MASTER_PORT (29500 unless ``kw["env"]`` has one) and the interface for gloo, NCCL and
        TensorPipe. The process is ours and its pid is its own; when the testbed closes it is terminated.

        Raises: ConfigError for a worker that does not exist, TestbedError when the testbed is not open.
        """
        if not 0 <= worker < self.network.workers:
            raise ConfigError(f"testbed: no worker {worker}; there are {self.network.workers}, counted from 0")
        given: Mapping[str, str] | None = kw.pop("env", None)
        env = dict(os.environ if given is None else given)
        env.update(
            {
                netns.MARK: self.name,
                "GLOO_SOCKET_IFNAME": INTERFACE,
                "NCCL_SOCKET_IFNAME": INTERFACE,
                "TP_SOCKET_IFNAME": INTERFACE,
                "MASTER_ADDR": self.addresses[0],
                "MASTER_PORT": MASTER_PORT if given is None else given.get("MASTER_PORT", MASTER_PORT),
            }
        )
        process: subprocess.Popen = subprocess.Popen([*self._inside(worker), *argv], env=env, **kw)
        self._processes = [p for p in self._processes if p.poll() is None]
        self._processes.append(process)
        return process

    def counters(self) -> list[Counter]:
        """What each worker's shapers have let pass and dropped: their own "Sent" and "dropped", headers included.

        Not the devices' counters, which miss the headers of segments that the kernel cuts late.
        """
        ports = self._root_queues(None)
        counters = []
        for worker in range(self.network.workers):
            out, into = self._root_queues(worker)[INTERFACE], ports[f"w{worker}"]
            numbers = [queue[key] for queue in (out, into) for key in ("bytes", "packets", "drops")]
            if self.delay == "relay":
                numbers[4] = None
            counters.append(Counter(worker, *numbers))
        return counters

    def relay(self) -> Stats:
        """What the delay relay has done so far, with the seconds by which it was late; zeros where there is none.

        ``lost`` has the frames that the kernel dropped because the relay did not take them in time.
        """
        keeper = self._open()
        if self.delay != "relay":
            return Stats()
        with open(f"/proc/{keeper.pid}/fd/{self._ready['stats']}", "rb", buffering=0) as file:
            stats = Stats(*STATS.unpack(file.read(STATS.size)))
        lost = stats.lost
        delayed = [worker for worker in range(self.network.workers) if _delays(self.network, worker)]
        for place in (None, *delayed):
            for device in json.loads(self._ask(place, "ip", "-s", "-j", "link", "show")):
                if device["ifname"] in (INTERFACE, *(f"w{worker}" for worker in delayed)):
                    lost += device["stats64"]["tx"]["dropped"]
        return stats._replace(lost=lost)

    def close(self) -> None:
        """End the processes inside, then the hosts. May be called again, and from a forked child does nothing."""
        if os.getpid() != self._owner:
            return
        keeper, self._keeper = self._keeper, None
        try:
            stop(self._processes)
            self._processes = []
        finally:
            if keeper is not None:
                self._end(keeper)
            self._give_back_sigterm()

    # -- within ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._keeper is not None:
            raise TestbedError("testbed: it is open already; make another Testbed for another set of hosts")
        script = str(Path(netns.__file__))
        env = {key: value for key, value in os.environ.items() if key != netns.MARK}
        keeper = self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", script, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd="/",
            start_new_session=True,
        )
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        plan = {"name": self.name, **make_plan(self.network, self.delay)}
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(json.dumps(plan).encode() + b"\n")
            keeper.stdin.flush()
        if not select.select([keeper.stdout], [], [], SETUP_SECONDS)[0]:
            raise TestbedError(f"testbed: setting up {self.network.workers} hosts took over {SETUP_SECONDS:.0f} s")
        answer = keeper.stdout.readline()
        if not answer:
            raise TestbedError(f"testbed: its keeper ended while setting up, with status {keeper.wait(10)}")
        self._ready = json.loads(answer)
        if "error" in self._ready:
            raise TestbedError(f"testbed: {self._ready['error']}")
        check_loopback(self.network, self._ready["loopback"])

    def _open(self) -> subprocess.Popen[bytes]:
        if self._keeper is None:
            raise TestbedError("testbed: it is not open; use it inside its `with` block")
        if self._keeper.poll() is not None:
            raise TestbedError("testbed: its keeper, or its delay relay, has been killed, and the hosts with it")
        return self._keeper

    def _inside(self, worker: int | None) -> list[str]:
        """What to put before a command to run it on a worker's host, or at the switch."""
        keeper = self._open()
        fd = self._ready["switch"] if worker is None else self._ready["hosts"][worker]
        return ["nsenter", f"--net=/proc/{keeper.pid}/fd/{fd}", "--"]

    def _ask(self, worker: int | None, *argv: str) -> str:
        argv = (*self._inside(worker), *argv)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise TestbedError(f"testbed: reading the kernel's counters failed: {done.stderr.strip()}")
        return done.stdout

    def _root_queues(self, worker: int | None) -> dict[str, dict[str, Any]]:
        queues = json.loads(self._ask(worker, "tc", "-s", "-j", "qdisc", "show"))
        return {queue["dev"]: queue for queue in queues if queue.get("root")}

    def _end(self, keeper: subprocess.Popen[bytes]) -> None:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(OSError):
            keeper.stdin.write(b"end\n")  # not only closed: a forked child of ours may hold the pipe too
            keeper.stdin.flush()
        with contextlib.suppress(OSError):
            keeper.stdin.close()
        try:
            keeper.wait(10 + 0.1 * self.network.workers)  # the kernel takes some 30 ms to end a pair of tap devices
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait(10)
        keeper.stdout.close()
        if keeper.returncode < 0:  # killed: what it should have ended is known by our mark
            netns.kill_all(netns.belongs_to([], self.name))

    def _handle_sigterm(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit_on_sigterm)
            self._restore = signal.SIG_DFL

    def _give_back_sigterm(self) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and self._restore is not None and signal.getsignal(signal.SIGTERM) is _exit_on_sigterm:
            signal.signal(signal.SIGTERM, self._restore)
            self._restore = None


def _exit_on_sigterm(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def stop(processes: Sequence[subprocess.Popen], grace: float = GRACE_SECONDS) -> None:
    """Terminate the processes that still run, and kill those that do after ``grace`` seconds; waits for them."""
    running = [process for process in processes if process.poll() is None]
    try:
        for process in running:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def run_everywhere(
    testbed: Testbed,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    grace: float = GRACE_SECONDS,
) -> list[int]:
    """Run ``argv`` on every host at once, as torchrun would, and return the exit statuses in the order of workers.

    Each gets RANK, WORLD_SIZE, LOCAL_RANK (0), LOCAL_WORLD_SIZE (1), MASTER_ADDR and MASTER_PORT on top of ``env``
    (ours if None). When one fails the others are terminated, and killed after ``grace`` seconds; their statuses
    are then -15 or -9, or what they made of the signal.

    Raises: ConfigError when ``argv`` is empty or names no program, TestbedError when the testbed is not open.
    """
    if not argv or shutil.which(argv[0]) is None:
        raise ConfigError(f"testbed: {argv[0] if argv else ''!r} is no program; give a command such as python train.py")
    base = dict(os.environ) if env is None else dict(env)
    processes: list[subprocess.Popen] = []
    try:
        for worker in range(testbed.network.workers):
            ranks = {"RANK": worker, "WORLD_SIZE": testbed.network.workers, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            processes.append(testbed.popen(worker, argv, env={**base, **{k: str(v) for k, v in ranks.items()}}))
        _first_failure(processes)
    finally:
        stop(processes, grace)
    return [process.returncode for process in processes]


def _first_failure(processes: Sequence[subprocess.Popen]) -> None:
    """Return when one process has failed or all have ended."""
    if any(process.poll() for process in processes):
        return
    running = [process for process in processes if process.returncode is None]
    watched = {os.pidfd_open(process.pid): process for process in running}  # not reaped: the pids are still theirs
    try:
        poll = select.poll()
        for fd in watched:
            poll.register(fd, select.POLLIN)
        left = len(watched)
        while left:
            for fd, _ in poll.poll():
                poll.unregister(fd)
                left -= 1
                if watched[fd].wait() != 0:
                    return
    finally:
        for fd in watched:
            os.close(fd)


def hosts_report(testbed: Testbed) -> str:
    """The hosts as text for a person: addresses, rates, delays, single slow links, and what holds them so."""
    network = testbed.network
    rows = [("host", "address", "up", "down", "delay")]
    for worker, connection in enumerate(network.connections):
        up, down = _rate_text(connection.up), _rate_text(connection.down)
        rows.append((str(worker), testbed.addresses[worker], up, down, _time_text(connection.latency)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for sender, receiver, link in network.links:
        lines.append(f"link {sender} -> {receiver}: {_rate_text(link.up)}, {_time_text(link.latency)}")
    how = {"none": "no delay asked", "netem": "delay by netem", "relay": "delay by the relay"}[testbed.delay]
    lines.append(
        f"{testbed.name}: shaped by tbf, burst {BURST_SECONDS * 1e3:g} ms; {how}; TCP {testbed.congestion_control}"
    )
    return "\n".join(lines)


def _rate_text(rate: float) -> str:
    return "unlimited" if rate == UNLIMITED else f"{rate * 8 / 1e6:g} Mbit/s"


def _time_text(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms"


# ---------------------------------------------------------------------------------------------------------------
# What is refused


def check(network: Network, delay: str) -> None:
    """Refuse a network that is not well formed or that this machine could not carry as stated.

    Raises: ConfigError with what was asked and the most that would be carried.
    """
    workers = network.workers
    if not 1 <= workers <= MOST_WORKERS:
        raise ConfigError(f"testbed: {workers} workers asked; it makes from 1 to {MOST_WORKERS} hosts")
    for worker, connection in enumerate(network.connections):
        _check_connection(f"worker {worker}", connection)
    for sender, receiver, link in network.links:
        if sender == receiver or not (0 <= sender < workers and 0 <= receiver < workers):
            raise ConfigError(
                f"testbed: a link {sender} -> {receiver} asked; there are {workers} workers, counted from 0, "
                "and a link joins two of them"
            )
        _check_connection(f"link {sender} -> {receiver}", link)
    total, cores = sum(_useful(network)), len(os.sched_getaffinity(0))
    if total > PER_CORE * cores:
        raise ConfigError(
            f"testbed: the workers together could send {_rate_text(total)}, and {cores} cores carry "
            f"{_rate_text(PER_CORE * cores)} honestly; ask lower rates or fewer workers"
        )
    if delay == "relay":
        _check_relay(network)


def check_loopback(network: Network, loopback: float) -> None:
    """Refuse a rate above a quarter of what this machine's loopback carried just now, in bytes a second."""
    fastest = max(_useful(network))
    if fastest > loopback / 4:
        raise ConfigError(
            f"testbed: a worker could send {_rate_text(fastest)}, and this machine's loopback carries "
            f"{_rate_text(loopback)} now, of which a quarter can be held honestly; ask less, or free the machine"
        )


def _check_connection(who: str, connection: Connection) -> None:
    for name, rate in (("up", connection.up), ("down", connection.down)):
        if not rate >= 1e3:  # also NaN
            raise ConfigError(f"testbed: {who} has {name} = {rate} bytes/s; the kernel shapes from 1000 (8kbit) up")
    if not 0 <= connection.latency <= 10:
        raise ConfigError(f"testbed: {who} has a latency of {connection.latency} s; it must be from 0 to 10 s")


def _useful(network: Network) -> list[float]:
    """Bytes a second that each worker can send at most, 0 where it is stated as unlimited.

    Unlimited is no statement that could be broken: such a worker goes as fast as the machine does.
    """
    connections, total_down = network.connections, sum(c.down for c in network.connections)
    rates = []
    for c in connections:
        others = total_down - c.down if math.isfinite(total_down) else UNLIMITED
        rate = min(c.up, others) if len(connections) > 1 else c.up
        rates.append(rate if math.isfinite(rate) else 0.0)
    return rates


def _check_relay(network: Network) -> None:
    held = total = 0.0
    for worker, connection in enumerate(network.connections):
        delays = _delays(network, worker)
        if delays is None:
            continue
        for name, rate in (("up", connection.up), ("down", connection.down)):
            if rate == UNLIMITED:
                raise ConfigError(
                    f"testbed: worker {worker} has a latency and no limit {name}; this kernel has no netem, and the "
                    f"relay that delays instead needs a rate it can keep, such as 100mbit"
                )
        rate = min(connection.up, _useful(network)[worker])
        total += rate
        held += rate * max([delays["all"], *delays["some"].values()])
    if total > RELAY_MOST:
        raise ConfigError(
            f"testbed: delayed workers could send {_rate_text(total)} together; this kernel has no netem, and the "
            f"relay that delays instead keeps up to {_rate_text(RELAY_MOST)}; ask lower rates or fewer delayed workers"
        )
    if held > RELAY_HELD:
        raise ConfigError(
            f"testbed: rates times latencies put {held / 2**20:.0f} MiB on the way at once; the relay holds "
            f"{RELAY_HELD >> 20} MiB; ask lower rates or shorter latencies"
        )


# ---------------------------------------------------------------------------------------------------------------
# What the keeper is told to do


def address(worker: int) -> str:
    """A worker's address, which exists only inside the testbed."""
    return f"10.77.0.{worker + 1}"


def hardware_address(worker: int) -> str:
    """A worker's hardware address: locally administered, and the worker's number."""
    return f"02:4c:61:63:00:{worker + 1:02x}"


def make_plan(network: Network, delay: str) -> dict[str, Any]:
    """The commands for ``ip`` and ``tc`` in each host and at the switch, and who is delayed for how long.

    ``delay`` is "none", "netem" or "relay". A host's ``delays`` is None where its frames need not pass the relay.
    """
    workers = range(network.workers)
    hosts, ports = [], []
    for worker in workers:
        delays = _delays(network, worker) if delay == "relay" else None
        hosts.append({"ip": _host_ip(network, worker), "tc": _host_tc(network, worker, delay), "delays": delays})
        # A veth has room for any burst of its shaper; a tap has a ring, which must hold one of small frames.
        ports.append(f"link set dev w{worker} txqueuelen 4000 master bridge up")
    bridge = ["link add name bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
    # Forward at once: the kernel would notice by itself that a port has a carrier, but only once a second.
    forward = [f"link set dev w{worker} type bridge_slave state 3" for worker in workers]
    tc = [_shaper(f"w{worker}", network.connections[worker].down) for worker in workers]
    return {"hosts": hosts, "ip": [*bridge, *ports, "link set dev bridge up", *forward], "tc": tc}


@functools.cache
def _congestion_control() -> str:
    """Cubic, as on most machines, else reno, which every kernel has: never whatever this machine happens to prefer."""
    try:
        there = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    except OSError:
        there = []
    return "cubic" if "cubic" in there else "reno"


def _host_ip(network: Network, worker: int) -> list[str]:
    lines = [
        "link set dev lo up",
        f"link set dev {INTERFACE} address {hardware_address(worker)} txqueuelen 4000",
        f"link set dev {INTERFACE} gso_max_size {_segment(network, worker)}",
        f"address add {address(worker)}/24 dev {INTERFACE}",
        f"link set dev {INTERFACE} up",
        # By route, because a namespace inherits the machine's choice and may not always set its own.
        f"route replace 10.77.0.0/24 dev {INTERFACE} scope link src {address(worker)} congctl {_congestion_control()}",
    ]
    for peer in range(network.workers):  # so that no bytes are counted, and no delay waited, for asking who is who
        if peer != worker:
            lines.append(f"neigh add {address(peer)} lladdr {hardware_address(peer)} nud permanent dev {INTERFACE}")
    return lines


def _host_tc(network: Network, worker: int, delay: str) -> list[str]:
    connection = network.connections[worker]
    links = {receiver: link for sender, receiver, link in network.links if sender == worker}
    if not links:
        lines = [_shaper(INTERFACE, connection.up)]
        if delay == "netem" and connection.latency:
            parent = "parent 1:1" if connection.up != UNLIMITED else "root handle 1:"
            lines.append(f"qdisc replace dev {INTERFACE} {parent} {_netem(connection)}")
        return lines
    # A class each for the slow links and one for the rest: a class is promised next to nothing and borrows from the
    # whole up to its ceiling, so together they never exceed the worker's rate and share it evenly.
    whole, piece = min(connection.up, 1e10), _segment(network, worker)
    lines = [
        f"qdisc replace dev {INTERFACE} root handle 1: htb default 2",
        f"class add dev {INTERFACE} parent 1: classid 1:1 htb {_htb(whole, whole, piece)}",
    ]
    for minor, (peer, link) in enumerate(
        [(None, Connection(connection.up, latency=connection.latency)), *links.items()]
    ):
        ident, rate = f"{minor + 2:x}", min(link.up, whole)
        lines.append(f"class add dev {INTERFACE} parent 1:1 classid 1:{ident} htb {_htb(1e3, rate, piece)}")
        leaf = _netem(link) if delay == "netem" and link.latency else f"bfifo limit {_queue_limit(rate)}"
        lines.append(f"qdisc add dev {INTERFACE} parent 1:{ident} handle {minor + 16:x}: {leaf}")
        if peer is not None:
            match = f"protocol ip u32 match ip dst {address(peer)}/32"
            lines.append(f"filter add dev {INTERFACE} parent 1: {match} flowid 1:{ident}")
    return lines


def _shaper(device: str, rate: float) -> str:
    if rate == UNLIMITED:
        return f"qdisc replace dev {device} root handle 1: bfifo limit {8 << 20}"  # holds nothing back, but counts
    limit = _queue_limit(rate)
    return f"qdisc replace dev {device} root handle 1: tbf rate {_bits(rate)} burst {_burst(rate)} limit {limit}"


def _segment(network: Network, worker: int) -> int:
    """Bytes that the kernel may send in one piece, to be cut into frames later: 10 ms of the slowest rate from here.

    By itself it takes 64 kB, half a second of 1 Mbit/s, and a slow link would stop and go. Where links take turns it is
    a burst of the slowest, which runs over while a longer piece of another passes.
    """
    own = [link.up for sender, _, link in network.links if sender == worker]
    slowest = min([network.connections[worker].up, *own])
    return int(min(1 << 16, max(3000, slowest * (BURST_SECONDS if own else 0.01))))


def _htb(rate: float, ceiling: float, piece: int) -> str:
    """A class that takes turns by pieces: while it waited for longer turns its bucket would run over."""
    burst = _burst(rate) if rate == ceiling else 1600
    return f"rate {_bits(rate)} ceil {_bits(ceiling)} burst {burst} cburst {_burst(ceiling)} quantum {piece}"


def _burst(rate: float) -> int:
    """Bytes that pass at once after a pause. What is more than its timer needs is a faster link for short messages."""
    return int(min(MOST_BURST, max(LEAST_BURST, rate * BURST_SECONDS)))


def _netem(connection: Connection) -> str:
    waiting = min(connection.up, 1.25e9) * (connection.latency + 0.2) / 64  # packets, were they all the smallest
    return f"netem delay {connection.latency * 1e6:.0f}us limit {max(1000, int(waiting))}"


def _queue_limit(rate: float) -> int:
    """Bytes that may wait at a shaper: its burst, and a quarter of a megabyte or 0.1 s of its rate.

    A router's buffer, roughly. Less would drop what several senders aim at one receiver at once, and the drops'
    timeouts would be measured instead of the rate.
    """
    return _burst(rate) + int(max(1 << 18, rate * 0.1))


def _bits(rate: float) -> str:
    return f"{rate * 8:.0f}bit"


def _delays(network: Network, worker: int) -> dict[str, Any] | None:
    """Seconds that the relay holds a worker's frames: ``all``, and ``some`` by the receiver's hardware address."""
    usual = network.connections[worker].latency
    some = {
        hardware_address(receiver).replace(":", ""): link.latency
        for sender, receiver, link in network.links
        if sender == worker and link.latency != usual
    }
    return {"all": usual, "some": some} if usual or some else None


def _delay_by(network: Network) -> str:
    if all(_delays(network, worker) is None for worker in range(network.workers)):
        return "none"
    return "netem" if has_netem() else "relay"

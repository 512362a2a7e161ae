"""The keeper: a small process that makes the testbed's network namespaces, holds them, and ends them.

The namespaces have no names. They live as open files of the keeper, so that they end with it, whatever ends it,
and with the last process inside. The keeper outlives its owner by a moment: it watches the owner through a pidfd
and a pipe, and when the owner is gone, SIGKILL included, it kills what still runs inside and exits.

It is run by path, ``python -I -S netns.py OWNER``, and needs nothing but the standard library, so it starts in
hundredths of a second and holds no memory of torch's. It reads its plan as one line of JSON on standard input,
answers with one line on standard output, and stays until standard input says or reaches its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MARK = "LACONIC_TESTBED"
"""The environment variable that every process started in a testbed carries; its value is the testbed's name."""

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02


class SetupError(Exception):
    """The machine refused a step of the set-up; the text is what it said."""


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot, or 0 if there is none; with the pid it names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def kill_all(doomed: Callable[[int], bool], seconds: float = 5.0) -> int:
    """Kill (SIGKILL) every process for which ``doomed(pid)`` holds; returns how many there were.

    Looks again until two looks in a row find none, because a process may be forking while it is looked for, and
    gives up after ``seconds``. A process is held by a pidfd between the look and the kill, so a pid that has
    passed to somebody else is never hit.
    """
    deadline, quiet, killed = time.monotonic() + seconds, 0, set()
    while quiet < 2 and time.monotonic() < deadline:
        found = []
        for pid in _pids():
            if pid == os.getpid() or not doomed(pid):
                continue
            with contextlib.suppress(OSError):
                found.append(os.pidfd_open(pid))
                if doomed(pid):
                    signal.pidfd_send_signal(found[-1], signal.SIGKILL)
                    killed.add(pid)
        for fd in found:
            select.select([fd], [], [], 0.2)
            os.close(fd)
        quiet = 0 if found else quiet + 1
        if quiet == 1:
            time.sleep(0.01)
    return len(killed)


def belongs_to(namespaces: Iterable[tuple[int, int]], name: str) -> Callable[[int], bool]:
    """Whether a process is inside one of the namespaces (device, inode), or carries the testbed's name."""
    inside = set(namespaces)

    def check(pid: int) -> bool:
        return network_of(f"/proc/{pid}/ns/net") in inside or mark_of(pid) == name

    return check


def network_of(path: str) -> tuple[int, int] | None:
    """The identity of the network namespace a path leads to, or None where it leads nowhere."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def mark_of(pid: int) -> str | None:
    """The name of the testbed that a process was started in, or None."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    key = MARK.encode() + b"="
    for entry in environment.split(b"\0"):
        if entry.startswith(key):
            return entry[len(key) :].decode(errors="replace")
    return None


def kill_leftovers() -> list[str]:
    """Kill the processes of testbeds whose owner and keeper are both gone; returns those testbeds' names.

    A testbed's name ends in its owner's pid and start time; processes of another pid namespace are left alone,
    because there the pid means another process.
    """
    here, names = network_of("/proc/self/ns/pid"), set()

    def orphaned(pid: int) -> bool:
        name = mark_of(pid) or ""
        parts = name.split("-")
        if len(parts) != 4 or not (parts[1].isdigit() and parts[2].isdigit()):
            return False
        if network_of(f"/proc/{pid}/ns/pid") != here or start_time(int(parts[1])) == int(parts[2]):
            return False
        names.add(name)
        return True

    kill_all(orphaned)
    return sorted(names)


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


# ---------------------------------------------------------------------------------------------------------------
# What only the keeper itself does


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise SetupError(f"{what} failed: {os.strerror(ctypes.get_errno())}")


def _new_namespace() -> int:
    _checked(_libc.unshare(CLONE_NEWNET), "making a network namespace (unshare)")
    with contextlib.suppress(OSError):  # read-only in some containers: addresses are then link-local and unused
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace: int) -> None:
    _checked(_libc.setns(namespace, CLONE_NEWNET), "entering a network namespace (setns)")


def _open_tap(name: str) -> int:
    """A tap device in the namespace we are in; frames come with a virtio header, large segments in one piece."""
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    except OSError as error:
        raise SetupError(
            f"opening a tap device (/dev/net/tun), which holds the delayed frames, failed: {error}"
        ) from error
    return fd


def _batch(tool: str, lines: list[str]) -> None:
    if not lines:
        return
    done = subprocess.run(
        [tool, "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said, _, where = done.stderr.strip().partition("\nCommand failed -:")
        line = lines[int(where) - 1] if where.isdigit() else lines[0]
        raise SetupError(f"`{tool} {line}` was refused: {' '.join(said.split())}")


def _await_forwarding(ports: int, seconds: float = 20.0) -> None:
    """Return when the bridge forwards on all its ports: the kernel may notice a port only a second after it is up.

    A connection's first packet, lost until then, would be sent again after a second, and look like a slow link.
    """
    deadline = time.monotonic() + seconds
    while True:
        argv = ["ip", "-j", "-d", "link", "show", "master", "bridge"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        links = json.loads(done.stdout or "[]")
        if sum(link["linkinfo"]["info_slave_data"]["state"] == "forwarding" for link in links) == ports:
            return
        if time.monotonic() > deadline:
            raise SetupError(f"the bridge did not forward on all its {ports} ports within {seconds:.0f} s")
        time.sleep(0.01)


def _loopback_rate(seconds: float = 0.04) -> float:
    """Bytes a second that TCP carries over the loopback of the namespace we are in."""
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    receiver, _ = server.accept()
    block, deadline = bytes(1 << 18), time.monotonic() + seconds

    def send() -> None:
        while time.monotonic() < deadline:
            client.sendall(block)
        client.close()

    thread, buffer, total, start = threading.Thread(target=send), bytearray(1 << 20), 0, time.monotonic()
    thread.start()
    while got := receiver.recv_into(buffer):
        total += got
    thread.join()
    receiver.close()
    server.close()
    return total / (time.monotonic() - start)


class _Stopped(Exception):
    """SIGTERM came."""


def _stop(*_: object) -> None:
    raise _Stopped


class _Keeper:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.name: str = plan["name"]
        self.relay: subprocess.Popen | None = None
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.switch = _new_namespace()
        self.hosts = [_new_namespace() for _ in plan["hosts"]]
        taps = self._devices(plan["hosts"])
        for namespace, host in zip(self.hosts, plan["hosts"], strict=True):
            _enter(namespace)
            _batch("ip", host["ip"])
            _batch("tc", host["tc"])
        _enter(self.switch)
        _batch("ip", plan["ip"])
        _batch("tc", plan["tc"])
        _await_forwarding(len(self.hosts))
        _enter(self.hosts[0])
        self.loopback = _loopback_rate()
        _enter(home)
        self.stats = os.memfd_create("laconic-relay")
        os.ftruncate(self.stats, 64)
        if taps:
            self._start_relay(plan["hosts"], taps)

    def _devices(self, hosts: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
        """Make each host's eth0 and its other end at the switch: a veth pair, or two taps with the relay between."""
        taps, veths = {}, []
        for i, host in enumerate(hosts):
            if host["delays"] is None:
                peer = f"/proc/{os.getpid()}/fd/{self.hosts[i]}"
                veths.append(f"link add name w{i} type veth peer name eth0 netns {peer}")
                continue
            _enter(self.hosts[i])
            near = _open_tap("eth0")
            _enter(self.switch)
            taps[i] = (near, _open_tap(f"w{i}"))
        _enter(self.switch)
        _batch("ip", veths)
        return taps

    def _start_relay(self, hosts: list[dict[str, Any]], taps: dict[int, tuple[int, int]]) -> None:
        config = [{"near": near, "far": far, **hosts[i]["delays"]} for i, (near, far) in taps.items()]
        fds = [fd for pair in taps.values() for fd in pair]
        script = str(Path(__file__).with_name("delay.py"))
        argv = [sys.executable, "-I", "-S", script, str(os.getpid()), str(self.stats)]
        self.relay = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[self.stats, *fds]
        )
        assert self.relay.stdin is not None
        self.relay.stdin.write(json.dumps(config).encode() + b"\n")
        self.relay.stdin.close()
        for fd in fds:  # the devices live as long as the relay: a network without its delay must not go on
            os.close(fd)

    def ready(self) -> dict[str, Any]:
        return {
            "hosts": self.hosts,
            "switch": self.switch,
            "stats": self.stats,
            "loopback": self.loopback,
        }

    def wait(self, owner: int) -> None:
        """Return when the owner says so, closes the pipe, or is gone, and when the relay is gone."""
        relay = [os.pidfd_open(self.relay.pid)] if self.relay else []
        with contextlib.suppress(_Stopped):
            signal.signal(signal.SIGTERM, _stop)
            select.select([sys.stdin.fileno(), owner, *relay], [], [])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end(self) -> None:
        spaces = [network_of(f"/proc/self/fd/{fd}") for fd in (self.switch, *self.hosts)]
        kill_all(belongs_to([space for space in spaces if space], self.name))
        if self.relay:
            self.relay.kill()
            self.relay.wait()


def _main() -> int:
    owner_pid = int(sys.argv[1])
    owner = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:  # it ended before we looked: the pidfd may be of somebody else
        return 1
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    text = b""
    while not text.endswith(b"\n"):
        got = os.read(sys.stdin.fileno(), 1 << 20)
        if not got:
            return 1
        text += got
    try:
        keeper = _Keeper(json.loads(text))
    except (SetupError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    with contextlib.suppress(OSError):
        print(json.dumps(keeper.ready()), flush=True)
    keeper.wait(owner)
    keeper.end()
    return 0


if __name__ == "__main__":
    sys.exit(_main())

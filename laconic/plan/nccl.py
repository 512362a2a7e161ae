"""One GPU host, read from a topology file as NCCL has them: CPUs, PCI switches, GPUs, NICs and NVLinks.

Rates are as NCCL reckons them: three quarters of what a PCI link of that generation and width signals, a constant a
kind of CPU between sockets, and a constant a generation for each NVLink. Such a file is what is found when a host
starts, so NVLinks may be missing from it: they are asked for at run time.

Source: github.com/NVIDIA/nccl, src/graph/topo.h and topo.cc (the constants).
"""

from __future__ import annotations

from typing import Any, NamedTuple
from xml.etree import ElementTree

from laconic.errors import ConfigError

GIGA = 1e9
PER_LANE = {"2.5": 0.1875, "5": 0.375, "8": 0.75, "16": 1.5, "32": 3.0, "64": 6.0}  # GT/s: GB/s that a lane carries
UNSAID = "8"  # GT/s, and
LANES = 16  # of a link that does not say
NVLINK = {60: 18.0, 70: 20.0, 80: 20.0, 86: 12.0, 90: 20.6, 100: 40.1}  # compute capability: GB/s of one link
INTEL = {85: 10.0, 143: 22.0, 207: 40.0}  # model: GB/s between sockets
SOCKETS = {"GenuineIntel": 6.0, "AuthenticAMD": 16.0}  # where the model is another
OTHER_SOCKET = 6.0
REACHED = 0.4  # of the peak, in training
# PCI device: name, bytes of memory, floating-point operations a second in 16 bits, dense.
GPUS = {
    "0x1db1": ("V100", 16e9, 125e12),
    "0x1db5": ("V100", 32e9, 125e12),
    "0x20b0": ("A100", 40e9, 312e12),
    "0x20b2": ("A100", 80e9, 312e12),
    "0x20b5": ("A100", 80e9, 312e12),
    "0x2237": ("A10G", 24e9, 70e12),
    "0x2330": ("H100", 80e9, 989e12),
}
LATENCY = {"nvlink": 1e-6, "switch": 1e-6, "cpu": 2e-6, "sockets": 3e-6}


class Host(NamedTuple):
    """GPUs of one host: bytes a second and seconds from each to each, the share of a NIC that each has (None: no NIC);
    their model and what it has, if it is known; and how it was read.
    """

    bandwidth: list[list[float]]
    latency: list[list[float]]
    out: list[float] | None
    model: str
    memory: float | None
    flops: float | None
    told: str
    notes: list[str]


class _Device(NamedTuple):
    """A GPU or a NIC: its bus id, the chain of links from it up to its CPU, each with its rate, and that CPU."""

    bus: str
    chain: tuple[tuple[str, float], ...]
    cpu: int
    element: Any


def host_of(text: str, where: str, nvlink: float | None = None, nic: float | None = None) -> Host:
    """Read a topology file. ``nvlink`` is a GPU's rate over its NVLinks, for files without them; ``nic`` a NIC's.

    Raises: ConfigError: no XML, another kind of file, no GPU.
    """
    cpus = _cpus(text, where)
    gpus, nics = (_devices(cpus, kind) for kind in ("0x03", "0x02"))
    if not gpus:
        raise ConfigError(
            f"{where}: no device in it has a GPU's class (0x03...); files that only say where devices sit need the host"
        )
    notes, count = [], len(gpus)
    if unsaid := sum(not _said(device.element) for device in gpus):
        notes.append(
            f"{unsaid} GPUs do not say their PCI link, or one that is not known; where its speed or width is open, "
            "generation 3 or 16 lanes are taken."
        )
    if len(models := sorted({device.element.get("device", "") for device in gpus})) > 1:
        notes.append(f"Its GPUs differ ({', '.join(models)}); memory and flops of all are the first's.")
    links = _nvlinks(gpus, notes)
    if nvlink is not None:
        links = {(a, b): nvlink for a in range(count) for b in range(count) if a != b}
        notes.append(f"NVLinks of {nvlink / GIGA:g} GB/s a GPU were stated.")
    elif not links:
        notes.append("The file names no NVLinks between GPUs, which are found at run time, so none are counted.")
    between = [[_joined(a, b, cpus) for b in gpus] for a in gpus]
    for (a, b), rate in links.items():
        between[a][b] = (max(rate, between[a][b][0]), LATENCY["nvlink"])
    told = f"{count} of them, PCI links at three quarters of what they signal, as NCCL reckons; latencies are assumed."
    model, memory, peak = GPUS.get(gpus[0].element.get("device", ""), (gpus[0].element.get("device", ""), None, None))
    return Host(
        [[rate for rate, _ in row] for row in between],
        [[late for _, late in row] for row in between],
        _shares(gpus, nics, cpus, nic),
        model,
        memory,
        None if peak is None else REACHED * peak,
        f"{told} They are {model}s." if memory is not None else told,
        notes,
    )


def _cpus(text: str, where: str) -> list[Any]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError(f"{where}: a topology file declares no document type; this one is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError(f"{where}: no XML: {error}") from None
    if root.tag != "system":
        hint = "; a graph file says which rings NCCL chose, and not what they run on" if root.tag == "graphs" else ""
        raise ConfigError(f"{where}: its root is <{root.tag}>, and a topology file's is <system>{hint}")
    return root.findall("cpu")


def _devices(cpus: list[Any], kind: str) -> list[_Device]:
    """The PCI devices of a class, in the file's order."""
    found: list[_Device] = []

    def walk(element: Any, chain: tuple[tuple[str, float], ...], cpu: int) -> None:
        for child in element.findall("pci"):
            own = ((child.get("busid", ""), _rate(child)), *chain)
            if child.get("class", "").startswith(kind):
                found.append(_Device(child.get("busid", ""), own, cpu, child))
            walk(child, own, cpu)

    for number, cpu in enumerate(cpus):
        walk(cpu, (), number)
    return found


def _said(element: Any) -> bool:
    width = element.get("link_width") or "0"
    return bool(element.get("link_speed")) and _speed(element) in PER_LANE and width.isdecimal() and int(width) > 0


def _speed(element: Any) -> str:
    speed: str = (element.get("link_speed") or UNSAID).split(" ")[0]
    return speed[:-2] if speed.endswith(".0") else speed


def _rate(element: Any) -> float:
    speed = _speed(element)
    width = element.get("link_width") or "0"
    lanes = int(width) if width.isdecimal() and int(width) else LANES
    return PER_LANE.get(speed, PER_LANE[UNSAID]) * lanes * GIGA


def _joined(a: _Device, b: _Device, cpus: list[Any]) -> tuple[float, float]:
    """Bytes a second and seconds over PCI: up to the first switch above both, or over the CPUs."""
    shared = {name for name, _ in a.chain} & {name for name, _ in b.chain} if a.cpu == b.cpu else set()
    if a.bus == b.bus:
        return a.chain[0][1], LATENCY["switch"]
    links = [rate for device in (a, b) for name, rate in device.chain if name not in shared]
    if shared:
        return min(links), LATENCY["switch"]
    if a.cpu == b.cpu:
        return min(links), LATENCY["cpu"]
    return min(*links, _socket(cpus[a.cpu]), _socket(cpus[b.cpu])), LATENCY["sockets"]


def _socket(cpu: Any) -> float:
    model = cpu.get("modelid", "")
    if cpu.get("vendor") == "GenuineIntel" and model.isdecimal() and int(model) in INTEL:
        return INTEL[int(model)] * GIGA
    return SOCKETS.get(cpu.get("vendor", ""), OTHER_SOCKET) * GIGA


def _nvlinks(gpus: list[_Device], notes: list[str]) -> dict[tuple[int, int], float]:
    """Rates of NVLinks that the file names, from GPU to GPU or to switches that all share."""
    number = {device.bus: i for i, device in enumerate(gpus)}
    direct: dict[tuple[int, int], float] = {}
    switched = [0.0] * len(gpus)
    own = 0
    for i, device in enumerate(gpus):
        for gpu in device.element.findall("gpu"):
            sm = gpu.get("sm", "")
            rate = NVLINK.get(int(sm), NVLINK[80]) if sm.isdecimal() else NVLINK[80]
            for link in gpu.findall("nvlink"):
                count = link.get("count", "1")
                carried = rate * GIGA * (int(count) if count.isdecimal() else 1)
                other = number.get(link.get("target", ""))
                if other == i:
                    own += 1
                elif other is not None:
                    direct[i, other] = direct.get((i, other), 0.0) + carried
                else:
                    switched[i] += carried
    if own:
        notes.append(f"{own} NVLinks lead from a GPU to itself, and are left out.")
    for a, rate in enumerate(switched):
        for b, other_rate in enumerate(switched):
            if a != b and min(rate, other_rate) > 0:
                direct[a, b] = max(direct.get((a, b), 0.0), min(rate, other_rate))
    return direct


def _shares(gpus: list[_Device], nics: list[_Device], cpus: list[Any], nic: float | None) -> list[float] | None:
    """What of its nearest NIC each GPU has when all talk; ``nic`` is a NIC's rate, else its PCI link's or its own."""
    rates = {device.bus: nic if nic is not None else device.chain[0][1] for device in nics}
    chains = {device.bus: device for device in nics}
    if not nics:
        own = [net.get("speed", "") for cpu in cpus for net in cpu.iter("net")]
        whole = nic if nic is not None else sum(float(speed) * 1e6 / 8 for speed in own if speed.isdecimal())
        return [whole / len(gpus)] * len(gpus) if whole else None

    def nearness(gpu: _Device, bus: str) -> tuple[int, bool]:
        other = chains[bus]
        shared = {name for name, _ in gpu.chain} & {name for name, _ in other.chain}
        return -len(shared), gpu.cpu != other.cpu

    used: dict[str, int] = dict.fromkeys(rates, 0)
    chosen = []
    for gpu in gpus:
        best = min(rates, key=lambda bus: (*nearness(gpu, bus), used[bus]))
        used[best] += 1
        chosen.append(best)
    return [min(rates[bus] / used[bus], gpu.chain[0][1]) for gpu, bus in zip(gpus, chosen, strict=True)]

"""What every link promises: functions that run on one worker's link, in a thread or in a process."""

from __future__ import annotations

import hashlib

import torch

from laconic.packet import DTYPES, Packet, message_nbytes

SIZES = [0, 1, 2, 3, 7, 1000, 4096, 50_001]  # under, at and over the size from which a ring is used


def values(dtype, n, rank):
    """Small whole numbers, so that every dtype's sum over a few workers is exact whatever the order."""
    return torch.randint(
        0, 2 if dtype == torch.bool else 20, (n,), generator=torch.Generator().manual_seed(n + 31 * rank)
    ).to(dtype)


def digest(tensors):
    return hashlib.sha256(
        b"".join(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors)
    ).hexdigest()


def messages(link):
    """Send and receive: everyone to everyone, several in a row, in order, with what was sent."""
    for number in range(3):
        for to in link.peers():
            link.send(
                [
                    Packet({"x": torch.full((number * 700,), float(link.rank))}, {"from": link.rank, "n": number}),
                    Packet({}),
                ],
                to,
            )
    for source in link.peers():
        for number in range(3):
            first, second = link.recv(source)
            assert first.header == {"from": source, "n": number}
            assert torch.equal(first.tensors["x"], torch.full((number * 700,), float(source)))
            assert second.tensors == {}


def gather(link):
    """Everyone's message, in rank order, of uneven sizes."""
    heard = link.all_gather([Packet({"x": torch.arange(link.rank * 5000)}, {"rank": link.rank})])
    assert [message[0].header["rank"] for message in heard] == list(range(link.size))
    assert [message[0].tensors["x"].numel() for message in heard] == [rank * 5000 for rank in range(link.size)]


def to_each(link):
    """To each worker its own message, of uneven sizes, mine to me as it is."""
    made = [[Packet({"x": torch.arange(to * 3000 + link.rank)}, {"way": [link.rank, to]})] for to in range(link.size)]
    heard = link.all_to_all(made)
    assert heard[link.rank] is made[link.rank]
    assert [message[0].header["way"] for message in heard] == [[rank, link.rank] for rank in range(link.size)]
    assert [m[0].tensors["x"].numel() for m in heard] == [link.rank * 3000 + rank for rank in range(link.size)]


def reduce(link):
    """The exact sum, in place, of every dtype and size; the same bits everywhere also where rounding matters."""
    for dtype in DTYPES.values():
        if dtype == torch.bool:
            continue
        for n in SIZES if dtype in (torch.float32, torch.bfloat16) else [3, 9001]:
            if dtype in (torch.int8, torch.uint8, torch.bfloat16):
                parts = [values(dtype, n, rank) % 5 for rank in range(link.size)]
            else:
                parts = [values(dtype, n, rank) for rank in range(link.size)]
            mine = parts[link.rank].clone()
            out = link.all_reduce(mine)
            assert torch.equal(out, sum(parts[1:], parts[0])), f"{dtype} {n}"
            assert out.dtype == dtype
            assert torch.equal(out, mine), "the tensor given becomes the sum"
    results = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for shape in [(5, 7), (33, 1001)]:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(link.rank), dtype=torch.float64).to(dtype)
            out = link.all_reduce(x)
            assert out.shape == torch.Size(shape)
            results.append(out)
    return digest(results)


def broadcast(link):
    """The root's tensors on everyone, of every dtype, copied into the tensors given."""
    for root in range(link.size):
        mine = [values(dtype, 13, link.rank) for dtype in DTYPES.values()] + [torch.full((3, 2), float(link.rank))]
        out = link.broadcast(mine, root)
        for got, dtype in zip(out, DTYPES.values(), strict=False):
            assert torch.equal(got, values(dtype, 13, root))
        assert all(a is b for a, b in zip(out, mine, strict=True))
        assert torch.equal(out[-1], torch.full((3, 2), float(root)))


def meter(link, envelope):
    """Bytes and messages as counted by hand."""
    message = [Packet({"x": torch.zeros(1000)}, {"k": 1})]
    link.barrier()
    before = link.meter.reading()
    link.all_gather(message)
    after = link.meter.reading()
    expected = (link.size - 1) * (message_nbytes(message) + envelope)
    for way in ("out", "in"):
        assert after[f"bytes_{way}"] - before[f"bytes_{way}"] == expected
        assert after[f"messages_{way}"] - before[f"messages_{way}"] == link.size - 1
    before = link.meter.reading()
    link.all_reduce(torch.zeros(300_000))
    out = link.meter.bytes_out - before["bytes_out"]
    ring = 2 * (link.size - 1) / link.size * 1_200_000
    assert ring <= out <= ring * 1.02, (out, ring)
    assert link.meter.messages_out - before["messages_out"] == 2 * (link.size - 1)


def lane(link):
    """Exchanges on the lane run in the order started, beside the caller."""
    handles = [link.start(lambda n=n: float(link.all_reduce(torch.tensor([float(n)])))) for n in range(5)]
    assert [h.result() for h in handles] == [float(n * link.size) for n in range(5)]
    assert all(h.done() for h in handles)


def everything(link, envelope):
    """All of it, on one link; returns a hash that must be the same on every worker."""
    messages(link)
    gather(link)
    to_each(link)
    one = reduce(link)
    broadcast(link)
    meter(link, envelope)
    lane(link)
    link.barrier()
    link.barrier()
    return one

"""Models sharded by torch's fully_shard: two copies of two parts, on four processes, laconic between the copies."""

import io
import math
import os

import pytest
import torch
from torch import nn

from laconic import attach
from laconic.errors import ClashError, ConfigError, NotANumber
from laconic.fault import checkpoint
from laconic.links import memory, process_group
from laconic.methods import build
from laconic.parallel.shards import local
from tests import tiny
from tests.links import workers

STEPS = 6
METHODS = [
    ("ddp", {}),
    ("ddp", {"compress": "int8"}),
    ("ddp-half", {}),
    ("topk", {"density": 0.1}),
    ("dgc", {"density": 0.05, "warmup_steps": 4}),
    ("powersgd", {"rank": 1, "min_rate": 1.0}),
    ("local-sgd", {"every": 3}),
    ("diloco", {"every": 2}),
    ("diloco", {"every": 3, "compress": "int8", "feedback": True}),
    ("streaming-diloco", {"every": 6, "fragments": 3, "overlap": 1}),
    ("noloco", {"every": 2}),
]


class Net(nn.Module):
    """Sizes that two do not divide, one that leaves the second part nothing, and a norm."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(tiny.FEATURES, 7)
        self.norm = nn.LayerNorm(7)
        self.gate = nn.Linear(7, 1)
        self.two = nn.Linear(7, tiny.CLASSES)

    def forward(self, x):
        h = self.norm(self.one(x).tanh())
        return self.two(h * self.gate(h).sigmoid())


def made():
    return tiny.seeded(Net().double(), 3)


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=0.02, betas=(0.0, 0.99))


def joined(copy, number):
    """The batches that the two ranks of a copy see at a step: on one worker they are one batch."""
    parts = [tiny.batch(2 * copy + part, number) for part in range(2)]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def meshed():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shard"))


def sharded(mesh):
    from torch.distributed.fsdp import fully_shard

    net = made()
    for layer in (net.one, net.gate, net.two):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def between_copies(mesh):
    return process_group(group=mesh["copies"].get_group(), timeout=20.0)


def step(net, sync, rank, number):
    tiny.loss(net, tiny.batch(rank, number)).backward()
    sync.step()
    sync.zero_grad()


def here(net):
    return [local(p).detach().clone() for p in net.parameters()]


def everything(weights):
    """Whole weights; all ranks of a copy take part."""
    return [w.full_tensor().tolist() for w in weights.values()]


def plain(method, clip):
    """The run without shards: each copy is one worker."""

    def work(link):
        net = made()
        sync = attach(net, adam(net), method, link, clip=clip)
        for number in range(STEPS):
            tiny.loss(net, joined(link.rank, number)).backward()
            sync.step()
            sync.zero_grad()
        sync.drain()
        return [w.tolist() for w in sync.weights().values()]

    return memory.run(2, work)


# -- the same run ------------------------------------------------------------------------------------------------

EXACT = [  # method, settings, the attachment's own clip
    ("ddp", {}, None),
    ("ddp", {}, 0.05),
    ("dgc", {"density": 1.0, "warmup_steps": 0, "clip": 0.05, "masking": False, "momentum": 0.5}, None),
    ("powersgd", {"rank": 7, "min_rate": 0.01}, None),
    ("local-sgd", {"every": 2}, None),
    ("diloco", {"every": 3, "compress": "topk(1.0)"}, None),
]


def exact():
    mesh = meshed()
    results = []
    with between_copies(mesh) as link:
        for method, settings, clip in EXACT:
            net = sharded(mesh["shard"])
            sync = attach(net, adam(net), build(method, settings), link, clip=clip)
            for number in range(STEPS):
                step(net, sync, mesh.get_rank(), number)
            sync.drain()
            results.append(everything(sync.weights()))
            sync.detach()
            link.barrier()
    return results


@pytest.mark.processes
def test_where_nothing_is_dropped_the_sharded_run_is_the_run_without_shards():
    answers = workers.fine(workers.run(4, exact, patience=90.0))
    for i, (method, settings, clip) in enumerate(EXACT):
        wanted = plain(build(method, settings), clip)
        for rank, answer in enumerate(answers):
            for got, exactly in zip(answer[i], wanted[rank // 2], strict=True):
                torch.testing.assert_close(
                    torch.tensor(got), torch.tensor(exactly), rtol=1e-9, atol=1e-10, msg=lambda m, n=method: f"{n}: {m}"
                )


# -- every method ------------------------------------------------------------------------------------------------


def all_methods():
    mesh = meshed()
    results = []
    with between_copies(mesh) as link:
        for method, settings in METHODS:
            net = sharded(mesh["shard"])
            sync = attach(net, adam(net), method, link, **settings)
            for number in range(12):
                step(net, sync, mesh.get_rank(), number)
            sync.drain()
            weights = sync.weights()
            finite = all(bool(torch.isfinite(local(w)).all()) for w in weights.values())
            results.append((tiny.digest(map(local, weights.values())), sync.sync.equal, finite, everything(weights)))
            sync.detach()
            link.barrier()
    return results


@pytest.mark.processes
def test_every_method_trains_shards_and_keeps_the_copies_equal_where_it_says_so():
    answers = workers.fine(workers.run(4, all_methods, patience=120.0))
    probe = joined(9, 99)
    start = float(tiny.loss(made(), probe).detach())
    for i, (method, settings) in enumerate(METHODS):
        (first, equal, _, whole), second, third, fourth = (answer[i] for answer in answers)
        assert all(answer[i][2] for answer in answers), method
        if equal:
            assert (first, second[0]) == (third[0], fourth[0]), (method, settings)
        net = made()
        with torch.no_grad():
            for p, value in zip(net.parameters(), whole, strict=True):
                p.copy_(torch.tensor(value, dtype=torch.float64))
        assert float(tiny.loss(net, probe).detach()) < start - 0.02, (method, settings)


def conserving():
    mesh = meshed()
    with between_copies(mesh) as link:
        net = sharded(mesh["shard"])
        came = [torch.zeros_like(local(p)) for p in net.parameters()]
        for p, total in zip(net.parameters(), came, strict=True):
            p.register_post_accumulate_grad_hook(lambda p, total=total: total.add_(local(p.grad)))
        sync = attach(net, adam(net), "every_step(everyone(error_feedback(topk(0.2))))", link)
        back = [torch.zeros_like(t) for t in came]
        for number in range(STEPS):
            tiny.loss(net, tiny.batch(mesh.get_rank(), number)).backward()
            sync.synchronize()
            for total, p in zip(back, net.parameters(), strict=True):
                total.add_(local(p.grad))
            sync.step()
            sync.zero_grad()
        residuals = {}
        for bucket in sync._buckets:
            for name, state in zip(bucket.names, bucket.state.inner, strict=True):
                residuals[name] = state.residual if hasattr(state, "residual") else None
        sizes = []
        for (name, p), came_here, back_here in zip(net.named_parameters(), came, back, strict=True):
            kept = residuals[name]
            link.all_reduce(came_here.div_(2))
            if kept is not None:
                assert kept.shape == local(p).shape
                sizes.append(kept.numel())
                back_here += link.all_reduce(kept.clone().div_(2))
            torch.testing.assert_close(back_here, came_here, rtol=1e-12, atol=1e-12)
    return sizes


@pytest.mark.processes
def test_what_each_part_sent_and_keeps_is_what_came_to_it_also_to_a_part_without_entries():
    answers = workers.fine(workers.run(4, conserving, patience=60.0))
    assert answers[0] == answers[2] != answers[1] == answers[3]
    assert 0 in answers[1], "one part of the gate has no entries"


# -- checkpoints -------------------------------------------------------------------------------------------------


def resumed(method, settings, folder):
    mesh = meshed()
    with between_copies(mesh) as link:
        net = sharded(mesh["shard"])
        sync = attach(net, adam(net), method, link, **settings)
        for number in range(4):
            step(net, sync, mesh.get_rank(), number)
        file = io.BytesIO()
        torch.save({"model": {n: local(t) for n, t in net.state_dict().items()}, "sync": sync.state_dict()}, file)
        checkpoint.save(folder, 4, net, sync, {"step": 4})
        for number in range(4, 9):
            step(net, sync, mesh.get_rank(), number)
        sync.drain()
        straight = tiny.digest(here(net))
        sync.detach()
        link.barrier()
        assert checkpoint.newest(folder, 4) == 4
        again = []
        for how in ("torch", "laconic"):
            net = sharded(mesh["shard"])
            sync = attach(net, adam(net), method, link, **settings)
            if how == "torch":
                state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
                with torch.no_grad():
                    for name, value in net.state_dict().items():
                        local(value).copy_(state["model"][name])
                sync.load_state_dict(state["sync"])
            else:
                assert checkpoint.load(folder, 4, net, sync) == {"step": 4}
            for number in range(4, 9):
                step(net, sync, mesh.get_rank(), number)
            sync.drain()
            again.append(tiny.digest(here(net)))
            saved = sync.state_dict()
            with pytest.raises(ConfigError, match="the saved shard is"):
                sync.load_state_dict(saved | {"shard": "another"})
            sync.detach()
            link.barrier()
    return straight, again


@pytest.mark.processes
@pytest.mark.parametrize(
    ("method", "settings"),
    [("topk", {"density": 0.1}), ("streaming-diloco", {"every": 4, "fragments": 2, "overlap": 1})],
)
def test_a_sharded_run_resumed_is_the_run_that_never_stopped_bit_for_bit(tmp_path, method, settings):
    for straight, again in workers.fine(workers.run(4, resumed, method, settings, tmp_path, patience=60.0)):
        assert again == [straight, straight]


# -- refusals ----------------------------------------------------------------------------------------------------


def refusing():
    import torch.distributed as dist

    mesh = meshed()
    whole = mesh._flatten("all") if hasattr(mesh, "_flatten") else mesh
    crossed = [dist.new_group([0, 3]), dist.new_group([1, 2])][mesh.get_rank() in (1, 2)]
    said = []
    for shards, group, error in (
        (whole, None, ClashError),  # one copy for all, and the link that attach makes by itself
        (mesh, mesh["copies"].get_group(), ClashError),  # FSDP averages between the copies already
        (mesh["shard"], mesh["shard"].get_group(), ClashError),
        (mesh["shard"], crossed, ConfigError),
    ):
        net = sharded(shards)
        with process_group(group=group, timeout=20.0) as link:
            with pytest.raises(error) as caught:
                attach(net, adam(net), "ddp", link)
            link.barrier()
        said.append(str(caught.value))
    with pytest.raises(ConfigError, match=r"the group.s backend is gloo, not nccl|nccl needs a CUDA device"):
        process_group("nccl", group=crossed)
    return said


@pytest.mark.processes
def test_a_link_between_the_wrong_ranks_is_refused_with_the_mesh_and_the_link_that_work():
    for said in workers.fine(workers.run(4, refusing, patience=60.0)):
        for sentence in said:
            assert "fully_shard(model, mesh=mesh['shard'])" in sentence
            assert "process_group(group=mesh['replicate'].get_group())" in sentence
        assert all("shard one copy of the model between them" in sentence for sentence in said[:3])
        assert "holds another part of the model" in said[3]


def deciding():
    mesh = meshed()
    with between_copies(mesh) as link:
        net = sharded(mesh["shard"])
        with pytest.raises(ClashError, match=r"accordion_batch.* decides by the norm of the whole gradient"):
            attach(net, adam(net), "accordion_batch()", link)
        link.barrier()
    return True


@pytest.mark.processes
def test_a_method_that_would_decide_otherwise_on_each_part_is_refused():
    assert workers.fine(workers.run(4, deciding, patience=60.0)) == [True] * 4


def overflowing():
    mesh = meshed()
    with between_copies(mesh) as link:
        net = sharded(mesh["shard"])
        sync = attach(net, adam(net), "topk", link, density=0.5)
        x, y = tiny.batch(mesh.get_rank(), 0)
        tiny.loss(net, (x * math.inf, y)).backward()
        with pytest.raises(NotANumber) as caught:
            sync.step()
    return link.rank, str(caught.value)


@pytest.mark.processes
def test_a_gradient_that_is_not_finite_is_named_with_its_worker_and_parameter():
    for rank, said in workers.fine(workers.run(4, overflowing, patience=60.0)):
        assert said.startswith(f"worker {rank}: gradient one.weight is not finite")

"""What is predicted of a cut model, against its messages on simulated links."""

import pytest

from laconic.errors import ConfigError
from laconic.links import simulated
from laconic.links.network import of_cluster
from laconic.plan.cluster import Cluster, Line, Machine
from laconic.plan.cutting import Job, price
from laconic.plan.layout import Layout, hosts, ranked
from laconic.plan.rehearsal import rehearse
from laconic.plan.transformer import Shape, Training, Transformer

MODEL = Transformer(8, 256, 4, 64, 1000)
MBIT = 1e6 / 8


def sites(inside=100 * MBIT, between=10 * MBIT, latency=0.0, each=2):
    """Two sites of equal workers: fast links inside, slow ones between."""
    machines = tuple(Machine(f"{site}{i}", 64e9, 1e12, site) for site in "ab" for i in range(each))
    lines = {(x, y): Line(inside if x == y else between, latency) for x in "ab" for y in "ab"}
    return Cluster("sites", machines, lines, tuple(machine.name for machine in machines))


def both(cluster, shape, across, job):
    """Seconds of a step: predicted, and rehearsed on the simulated links of the cluster."""
    layout = Layout(cluster, tuple(ranked(cluster)), shape, across)
    measured = simulated.run(of_cluster(cluster, shape.workers), lambda link: rehearse(job, layout, link))
    return price(job, layout).seconds, max(measured)


@pytest.mark.parametrize("shape", [Shape(2, 1, 2, 4), Shape(4, 1, 1, 2), Shape(1, 1, 4, 4), Shape(4, 1, 1, 4)])
@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("latency", [0.0, 0.02])
def test_a_step_takes_on_simulated_links_what_is_predicted(shape, across, latency):
    predicted, measured = both(sites(latency=latency), shape, across, Job(MODEL, Training(64)))
    assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("compute", [1e11, 1e12, 1e13])
def test_at_every_balance_of_computing_and_sending(compute):
    cluster = hosts(4, 1, compute, 64e9, Line(1e9, 0.0), Line(20 * MBIT, 0.01))
    job = Job(Transformer(8, 256, 4, 64, 1000, tied=False), Training(32))
    predicted, measured = both(cluster, Shape(4, 1, 1, 1), True, job)
    assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(("batch", "stages_win"), [(16, True), (2048, False)])
def test_stages_across_a_slow_link_beat_copies_across_by_the_predicted_factor(batch, stages_win):
    """Two sites of two, 100 Mbit/s inside and 10 between: within 20 % of the factor that is predicted."""
    job = Job(MODEL, Training(batch, sharded_optimizer=False, gradient_bytes=2))
    stages = both(sites(), Shape(2, 1, 2, 4), True, job)
    copies = both(sites(), Shape(2, 1, 2, 4), False, job)
    assert (stages[1] < copies[1]) == stages_win
    assert copies[0] / stages[0] == pytest.approx(copies[1] / stages[1], rel=0.2)


def test_what_it_cannot_rehearse_is_refused():
    cluster = sites()
    machines = tuple(ranked(cluster))
    job = Job(MODEL, Training(64))

    def run(shape):
        layout = Layout(cluster, machines, shape)
        return simulated.run(of_cluster(cluster, 4), lambda link: rehearse(job, layout, link))

    with pytest.raises(ConfigError, match="it takes stages and copies alone"):
        run(Shape(2, 2, 1, 1))
    with pytest.raises(ConfigError, match="takes 2 workers, and the link joins 4"):
        run(Shape(2, 1, 1, 1))

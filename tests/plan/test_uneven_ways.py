"""Where links are fast inside sites and slow between, sums by a plan are offered, run, and known to the runner."""

import sys

import pytest
import torch

import laconic
from laconic import train
from laconic.links.memory import alone
from laconic.links.network import of_cluster
from laconic.plan import site
from laconic.plan.cluster import read_cluster
from laconic.plan.job import Job, Step
from laconic.plan.ranking import Goal, rank, ways_for
from laconic.recipe import Recipe
from tests.exchange.test_planned import two_sites

JOB = Job("small", tuple((f"blocks.{i}.weight", (256, 512)) for i in range(4)), 128, 1e6, 2e6)
BY_PLAN = {"ddp plan=auto", "ddp-half plan=auto", "diloco every=50 plan=auto"}
TWO_SITES = """
name = "two sites"
machines = [
  {name = "a", group = "A", memory = 8e9, flops = 1e10}, {name = "b", group = "A", memory = 8e9, flops = 1e10},
  {name = "c", group = "B", memory = 8e9, flops = 1e10}, {name = "d", group = "B", memory = 8e9, flops = 1e10},
]
[between]
places = ["A", "B"]
bandwidth = [[12.5e6, 1.25e6], [1.25e6, 12.5e6]]
latency = [[0.0002, 0.005], [0.005, 0.0002]]
"""


@pytest.fixture
def cluster(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO_SITES)
    return str(path)


def at(network):
    return site.of(network, [Step(0.2, 0.4)] * network.workers)


def test_sums_by_a_plan_are_offered_where_there_are_sites_and_only_there():
    assert {way.name for way in ways_for(JOB, at(two_sites()), 1e5)} >= BY_PLAN
    even = at(of_cluster(read_cluster("homes6"), 6))
    assert not any("plan" in way.settings for way in ways_for(JOB, even, 1e5))


def test_between_two_sites_ddp_by_a_plan_comes_before_ddp_by_more_than_twice():
    ways = [way for way in ways_for(JOB, at(two_sites()), 1e5) if way.name in ("ddp", "ddp plan=auto")]
    found = rank(JOB, at(two_sites()), Goal(1e6), ways, paces=dict.fromkeys([way.name for way in ways], 0.0))
    by_name = {one.way.name: one for one in found.ranked}
    assert found.first.way.name == "ddp plan=auto"
    assert found.first.progress.factor == 1
    assert by_name["ddp"].price.waiting > 2 * by_name["ddp plan=auto"].price.waiting


def test_a_recipe_says_what_is_known_of_the_links_of_as_many_workers(cluster):
    recipe = Recipe("shakespeare", workers=4, cluster=cluster, on="testbed", steps=1)
    assert recipe.links_of(4) == of_cluster(read_cluster(cluster), 4)  # as messages see them, not the wire
    assert recipe.links_of(2) is None
    assert Recipe("shakespeare", workers=4, on="group", steps=1).links_of(4) is None


@pytest.mark.parametrize("on", ["testbed", "simulated"])
def test_the_runner_tells_a_link_over_a_process_group_what_it_runs_on(cluster, on, monkeypatch, tmp_path):
    with alone() as link:
        recipe = Recipe("shakespeare", "ddp", {"plan": "auto"}, workers=1, cluster=cluster, on=on, steps=1)
        monkeypatch.setattr(train, "process_group", lambda timeout: link)
        assert train._link(recipe).network == recipe.links_of(1)
        link.network = None
        monkeypatch.setattr(sys.modules["laconic.links.process_group"], "process_group", lambda: link)
        (tmp_path / "r.toml").write_text(recipe.to_toml())
        model = torch.nn.Linear(4, 4)
        laconic.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), str(tmp_path / "r.toml")).detach()
        assert link.network == recipe.links_of(1)

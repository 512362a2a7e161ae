"""Clusters from elsewhere: what a GML or an NCCL file says, what is assumed beside it, and what is refused."""

import numpy as np
import pytest

from laconic.errors import ConfigError
from laconic.plan.cluster import read_cluster
from laconic.plan.flows import in_rounds, play
from laconic.plan.importing import Assumed, backbone, imported
from laconic.plan.writing import write_cluster

GML = """graph [
  node [ id 0 label "Rome" ]
  node [ id 1 label "Milan" ]
  node [ id 2 label "New+York" ]
  node [ id 3 label "Bari" ]
  edge [ source 0 target 1 distance 400 capacity 800000000.0 ]
  edge [ source 1 target 2 distance 6000 capacity 80000000.0 ]
  edge [ source 0 target 2 distance 9000 capacity 8000000000.0 ]
  edge [ source 0 target 3 distance 400 ]
]
"""
HOST = """<system version="1">
  <cpu numaid="0" vendor="GenuineIntel" modelid="85">
    <pci busid="a" class="0x060400" link_speed="8 GT/s" link_width="16">
      <pci busid="g0" class="0x030200" device="0x20b0" link_speed="8 GT/s" link_width="16"/>
      <pci busid="g1" class="0x030200" device="0x20b0" link_speed="8 GT/s" link_width="8"/>
      <pci busid="n0" class="0x020000" link_speed="8 GT/s" link_width="16"/>
    </pci>
    <pci busid="g2" class="0x030200" device="0x20b0" link_speed="16.0 GT/s PCIe" link_width="16"/>
  </cpu>
  <cpu numaid="1" vendor="GenuineIntel" modelid="85">
    <pci busid="g3" class="0x030200" device="0x20b0" link_speed="32 GT/s" link_width="16">
      EXTRA
    </pci>
  </cpu>
</system>
"""


@pytest.fixture
def read(tmp_path):
    def reading(text, name, **assumed):
        (tmp_path / name).write_text(text)
        return imported(tmp_path / name, Assumed(**assumed))

    return reading


def test_silos_have_the_narrowest_edge_of_the_shortest_way_and_its_kilometres(read, tmp_path):
    raw = read(GML, "boot.gml", bandwidth=1e6)
    assert raw["between"]["places"] == ["Rome", "Milan", "New York", "Bari"]
    rates, late = np.array(raw["between"]["bandwidth"]), np.array(raw["between"]["latency"])
    # Rome to New York is shorter over Milan, though the other way is wider; Bari's edge has no capacity.
    assert rates[0].tolist() == [1e9, 1e8, 1e7, 1e6]
    assert late[0] == pytest.approx([0.004, 0.004 + 400 * 8.5e-6, 0.004 + 6400 * 8.5e-6, 0.004 + 400 * 8.5e-6])
    assert (rates == rates.T).all()
    assert (late == late.T).all()
    assert "1 of 4 edges had no capacity; 1e+06 bytes/s were assumed" in raw["about"]
    cluster = write_cluster(tmp_path / "boot.toml", raw)
    assert {machine.flops for machine in cluster.machines} == {20e9}
    assert raw["about"].endswith("Of the machines it says nothing; assumed: 16 GB and 20 Gflop/s in training.")
    assert read(GML, "boot.gml", bandwidth=1e6, memory=8e9)["about"].endswith("assumed: 20 Gflop/s in training.")
    assert read(GML, "boot.gml", bandwidth=1e6, flops=1e12)["about"].endswith("assumed: 16 GB.")
    own = read(GML, "boot.gml", bandwidth=1e6, memory=8e9, flops=1e12)
    assert "assumed: " not in own["about"]
    assert (own["machines"][0]["memory"], own["machines"][0]["flops"]) == (8e9, 1e12)


def test_over_a_backbone_edges_are_shared_by_all_that_cross_them(tmp_path):
    (tmp_path / "boot.gml").write_text(GML)
    fabric = backbone(tmp_path / "boot.gml", 1e6)
    timing = play(fabric, in_rounds(4, [[(0, 2, 1e7), (1, 2, 1e7), (3, 0, 1e6)]]), together=True)
    assert timing.left == pytest.approx([2.0, 2.0, 1.0])
    assert timing.arrived[0] == pytest.approx(2.0 + 6400 * 8.5e-6)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("graph [", "graf [", "no GML"),
        ("graph [", "graph [ directed 1", "its edges have a direction, which is not read"),
        (GML, "graph 5", "no GML"),
        (GML, "graph [ node 3 ]", "no GML"),
        (GML, "graph [ node [ id [ a 1 ] ] node [ id [ a 1 ] ] ]", "no GML"),
        ("distance 6000", "distance 1" + "0" * 400, "New York's distance must be a number"),
        ("distance 6000", "", r"the edge from Milan to New York has no distance, in km"),
        ("capacity 80000000.0", "capacity -80000000.0", "has 6000 km and -80000000.0 bit/s; both must be positive"),
        ("distance 6000", 'distance "far"', "New York's distance must be a number, got 'far'"),
        ('label "Milan"', 'label "Rome"', "two nodes are called 'Rome'"),
        ("edge [ source 0 target 3 distance 400 ]", "", "it falls apart: nothing joins Milan with Bari, in 2 parts"),
    ],
)
def test_what_is_wrong_in_a_gml_is_said_with_the_file(read, old, new, told):
    assert old in GML
    with pytest.raises(ConfigError, match=told) as caught:
        read(GML.replace(old, new), "boot.gml", bandwidth=1e6)
    assert "boot.gml" in str(caught.value)


def test_edges_without_capacity_ask_for_one(read):
    with pytest.raises(
        ConfigError, match=r"1 of 4 edges have no capacity, the first from Rome to Bari; say theirs with"
    ):
        read(GML, "boot.gml")


def test_gpus_have_the_narrowest_link_between_them(read, tmp_path):
    raw = read(HOST, "host.xml")
    rates = np.array(raw["between"]["bandwidth"]) / 1e9
    # Three quarters of 16 GB/s of generation 3; half the lanes; over the CPU; over both sockets at Skylake's 10 GB/s.
    assert rates[0].tolist() == [12.0, 6.0, 12.0, 10.0]
    assert rates[2].tolist() == [12.0, 6.0, 24.0, 10.0]
    assert raw["machines"][0] == {
        "name": "gpu0", "memory": 40e9, "flops": 0.4 * 312e12, "group": "host0", "up": 12e9, "down": 12e9
    }  # fmt: skip
    assert "names no NVLinks" in raw["about"]
    assert write_cluster(tmp_path / "host.toml", raw).machines[3].up == 48e9


def test_nvlinks_are_those_of_the_file_or_those_that_are_stated(read):
    link = '<gpu sm="80"><nvlink target="g0" count="4" tclass="0x030200"/><nvlink target="g3" count="2"/></gpu>'
    raw = read(HOST.replace("EXTRA", link), "host.xml")
    assert raw["between"]["bandwidth"][3][0] == 80e9
    assert raw["between"]["bandwidth"][3][1] == 6e9
    assert "1 NVLinks lead from a GPU to itself, and are left out" in raw["about"]
    stated = read(HOST, "host.xml", nvlink=240e9)["between"]["bandwidth"]
    assert {stated[a][b] for a in range(4) for b in range(4) if a != b} == {240e9}


def test_hosts_are_joined_by_each_gpus_share_of_its_nearest_nic(read):
    raw = read(HOST, "host.xml", hosts=2, nic=12.5e9)
    assert len(raw["machines"]) == 8
    rates = np.array(raw["between"]["bandwidth"])
    assert rates[0, 4] == pytest.approx(12.5e9 / 4)  # one NIC, nearest to all four
    assert (rates[:4, :4] == rates[4:, 4:]).all()
    without = HOST.replace('<pci busid="n0" class="0x020000" link_speed="8 GT/s" link_width="16"/>', "")
    with pytest.raises(ConfigError, match="it has no NIC to join 2 hosts by"):
        read(without, "host.xml", hosts=2)
    assert read(without, "host.xml")["machines"]
    net = without.replace("EXTRA", "").replace("</system>", "").replace(
        '<cpu numaid="1"', '<cpu numaid="2"><nic><net name="eth0" speed="100000"/></nic></cpu><cpu numaid="1"'
    )  # fmt: skip
    assert read(net + "</system>", "host.xml", hosts=2)["between"]["bandwidth"][0][4] == pytest.approx(12.5e9 / 4)


def test_links_that_are_not_known_and_gpus_that_differ_are_said(read):
    odd = HOST.replace('link_speed="16.0 GT/s PCIe" link_width="16"', 'link_speed="17 GT/s" link_width="²"')
    raw = read(odd, "host.xml")
    assert "1 GPUs do not say their PCI link, or one that is not known" in raw["about"]
    assert raw["between"]["bandwidth"][2][2] == 12e9
    assert "GPUs differ" not in raw["about"]
    mixed = read(
        HOST.replace('busid="g2" class="0x030200" device="0x20b0"', 'busid="g2" class="0x030200" device="0x2330"'),
        "host.xml",
    )
    assert "Its GPUs differ (0x20b0, 0x2330); memory and flops of all are the first's." in mixed["about"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<system", "no XML"),
        ("<graphs/>", "its root is <graphs>, .* a graph file says which rings NCCL chose"),
        ("<system><cpu><pci busid='x'/></cpu></system>", "no device in it has a GPU's class"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><system/>", "declares no document type"),
        (
            HOST.replace('device="0x20b0"', 'device="0x1234"'),
            "it does not say which GPUs it has .0x1234.; say --memory",
        ),
    ],
)
def test_what_is_no_host_is_refused_in_a_sentence(read, text, told):
    with pytest.raises(ConfigError, match=told) as caught:
        read(text, "host.xml")
    assert "host.xml" in str(caught.value)


def test_other_files_are_refused_in_a_sentence(read, tmp_path):
    with pytest.raises(ConfigError, match=r"a\.csv: not a file of a kind that is known; give a \.gml"):
        read("a,b", "a.csv")
    with pytest.raises(ConfigError, match=r"none\.gml: cannot be read: No such file"):
        imported(tmp_path / "none.gml")
    (tmp_path / "odd.gml").write_bytes(b"\xff\xfe\x00graph")
    with pytest.raises(ConfigError, match=r"odd\.gml: no text"):
        imported(tmp_path / "odd.gml")
    with pytest.raises(ConfigError, match="it has 1 nodes"):
        read('graph [ node [ id 0 label "a" ] ]', "one.gml")


def test_the_shipped_topologies_are_what_their_sources_say():
    gaia = read_cluster("gaia11")
    by_name = {machine.name: machine for machine in gaia.machines}
    line = gaia.line(by_name["Virginia"], by_name["California"])
    assert line.bandwidth == 1e9 / 8
    assert line.latency == pytest.approx(0.004 + 3560.859824767453 * 8.5e-6, abs=1e-7)
    assert len(read_cluster("geant40").machines) == 40
    aws, azure = read_cluster("p4dx2"), read_cluster("ndv5x2")
    assert [len(cluster.machines) for cluster in (aws, azure)] == [16, 16]
    rates = [cluster.line(cluster.machines[0], cluster.machines[8]).bandwidth for cluster in (aws, azure)]
    assert rates == [12.5e9 / 2, 48e9]  # four NICs for eight GPUs; one each, as wide as its PCI link
    assert aws.machines[0].memory == 40e9

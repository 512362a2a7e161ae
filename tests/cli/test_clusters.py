"""``laconic clusters``: lists, shows, converts, and says what is wrong."""

import json

from laconic.plan.cluster import read_cluster, shipped
from tests.plan.test_importing import GML, HOST


def test_without_a_name_every_shipped_cluster_has_a_line(laconic):
    status, out, _ = laconic("clusters")
    assert status == 0
    for name in shipped():
        assert any(line.startswith(f"{name} ") and "machines" in line for line in out.splitlines())
    status, out, _ = laconic("clusters", "--json")
    assert [each["name"] for each in json.loads(out)] == shipped()


def test_one_is_shown_with_its_links_and_its_matrix(laconic):
    status, out, _ = laconic("clusters", "aws10")
    assert status == 0
    assert "slowest   Sydney to London: 326 Mbit/s, 131 ms" in out
    assert "licence   MIT" in out
    row = next(line for line in out.splitlines() if line.startswith("Oregon"))
    assert "790 M 33.5 ms" in row
    status, out, _ = laconic("clusters", "geant40")
    assert "The matrix of 40 machines stands in the file" in out


def test_a_topology_becomes_a_cluster_file_that_can_be_read(laconic, tmp_path):
    (tmp_path / "boot.gml").write_text(GML)
    status, out, _ = laconic("clusters", "boot.gml", "--bandwidth", "8mbit", "--out", "boot.toml")
    assert status == 0
    assert out.endswith("cluster file: boot.toml\n")
    assert len(read_cluster(tmp_path / "boot.toml").machines) == 4
    (tmp_path / "host.xml").write_text(HOST)
    status, out, _ = laconic("clusters", "host.xml", "--hosts", "2", "--nic", "100gbit", "--memory", "24GB", "--json")
    assert status == 0
    assert (json.loads(out)["machines"], json.loads(out)["memory"]) == (8, [24e9, 24e9])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boot.gml", "boot.toml", "host.xml"]


def test_a_shipped_one_is_copied_to_be_changed(laconic, tmp_path):
    assert laconic("clusters", "homes6", "--out", "mine.toml")[0] == 0
    assert read_cluster(tmp_path / "mine.toml") == read_cluster("homes6")


def test_what_is_wrong_is_said_with_status_2(laconic, tmp_path):
    (tmp_path / "boot.gml").write_text(GML)
    for arguments, told in (
        (["boot.gml"], "say theirs with --bandwidth, such as 1gbit"),
        (["boot.gml", "--bandwidth", "fast"], "link rate 'fast' is not a rate"),
        (["boot.gml", "--bandwidth", "1gbit", "--memory", "lots"], "memory 'lots' is no size"),
        (["boot.gml", "--bandwidth", "8mbit", "--nic", "1gbit"], "--nic is not for boot.gml; for a .gml there are"),
        (["boot.gml", "--bandwidth", "8mbit", "--hosts", "4"], "--hosts is not for boot.gml"),
        (["host.xml", "--bandwidth", "1gbit"], "--bandwidth is not for host.xml; for a .xml there are --memory"),
        (["homes6", "--out", "mine"], "--out mine: a cluster file's name ends in .toml"),
        (["aws10", "--nic", "1gbit"], "--nic is for a .gml or an .xml that is converted"),
        (["--out", "x.toml"], "--out writes one cluster; name it"),
        (["aws11"], "did you mean 'aws10'?"),
        (["host.xml"], "host.xml: cannot be read"),
        (["boot.gml", "--bandwidth", "8mbit", "--out", "no/where.toml"], "cannot be written"),
    ):
        status, _, err = laconic("clusters", *arguments)
        assert status == 2
        assert told in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["boot.gml"]

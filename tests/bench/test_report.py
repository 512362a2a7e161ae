import builtins
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.bench import report_charts, report_page
from laconic.bench.curves import POINTS, smoothed, thinned
from laconic.bench.report import write_report
from laconic.bench.report_charts import seconds_split
from laconic.bench.runs import read
from laconic.errors import ConfigError

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>&amp;'"
SPENT = ("seconds_computing", "seconds_compressing", "seconds_waiting")


def write_run(folder, name="diloco", *, steps=60, evals=True, step_bytes=1000, loss=None, shift=0.0, **summary):
    folder.mkdir(parents=True)
    rows = [
        {"step": n, "tokens": 64 * n, "seconds": 0.1 * n, "loss": (loss or (lambda n: 4 / n + 1))(n),
         "bytes_out": step_bytes * n, "messages_out": n,
         "seconds_computing": 0.06 * n, "seconds_compressing": 0.01 * n, "seconds_waiting": 0.02 * n}
        for n in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evals:
        held = [{k: row[k] for k in ("step", "tokens", "seconds", "bytes_out")} for row in rows[::10]]
        lines = [json.dumps({**row, "eval_loss": 5 / row["step"] + 1.1 + shift}) for row in held]
        (folder / "evals.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(f"method = {json.dumps(name)}\nnote = '{HOSTILE}'\n")
    made = {
        "name": name, "workload": "shakespeare", "workers": 2, "link": "20mbit", "measured_on": "paced links",
        "steps": steps, "eval_loss": 1.25 if evals else None,
        "predicted": {"step_seconds": 0.08, "bytes_out": step_bytes * steps},
        "versions": {"laconic": "0.1.0", "torch": "2.13.0"}, "machine": {"cpu": "2 cores"},
        "command": f"laconic train shakespeare --method {name}", "stopped": None, **rows[-1], **summary,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(made))
    return folder


def write_comparison(folder, names=("ddp", "diloco", HOSTILE), step_bytes=None):
    methods = []
    for i, name in enumerate(names):
        run = write_run(folder / f"run{i}", name, step_bytes=step_bytes or 10 ** (6 - 2 * i))
        speed = {"reached_seconds": 6.0 / (i + 1), "speedup": i + 1.0}
        methods.append(json.loads((run / "summary.json").read_text()) | speed | {"folder": run.name})
    (folder / "comparison.json").write_text(
        json.dumps(
            {"workload": "shakespeare", "workers": 2, "link": "20mbit", "measured_on": "paced links", "seconds": 6.0,
             "ideal": {"step_seconds": 0.05, "steps_per_second": 20.0}, "methods": methods,
             "verdict": f"diloco pays: 2.0 times sooner than ddp. {HOSTILE}"}
        )
    )  # fmt: skip
    return folder


def write_seeds(folder, ways=("ddp", "diloco every=50")):
    """A comparison of three seeds, whose evaluations lie at different seconds."""
    methods = []
    for i, name in enumerate(ways):
        runs = []
        for seed in range(3):
            run = write_run(folder / f"0{i}" / f"seed-{seed}", name.split()[0], steps=60 + 5 * seed, shift=0.2 * seed)
            runs.append({"seed": seed, "folder": f"0{i}/seed-{seed}", "eval_loss": 1.25 + 0.2 * seed})
        first = json.loads((run / "summary.json").read_text())
        ranges = {"eval_loss": [1.25, 1.65], "reached_seconds": [1.0, 4.0]}
        mean = {"name": name, "eval_loss": 1.45, "reached_seconds": 2.0, "speedup": 3.0, "folder": f"0{i}"}
        methods.append(first | mean | {"runs": runs, "spread": ranges, "seconds_waiting": 3.0, "seconds": 6.0})
    made = {"workload": "adult", "plain": "ddp", "goal": 1.5, "seeds": [0, 1, 2], "methods": methods, "verdict": "so"}
    (folder / "comparison.json").write_text(json.dumps(made))
    return folder


class Page(HTMLParser):
    """What a browser would find in the page: its tags, the text of its scripts, and the text to read."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], {}, "", None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = dict(attrs).get("id", f"{tag}{len(self.scripts)}")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text += data
        else:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    def json(self, name):
        return json.loads(self.scripts[name], parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_the_report_of_a_comparison_says_what_came_of_it(tmp_path):
    path = write_report([write_comparison(tmp_path / "cmp")])
    assert path == tmp_path / "cmp" / "report.html"
    page = Page(path)
    assert "3 ways to train on shakespeare" in page.text
    assert "diloco pays: 2.0 times sooner than ddp." in page.text
    for text in ("60.0 MB", "20%", "50%", "3.00 s, 2.0×", "20.0 steps/s", "Predicted and measured", "25% more",
                 "laconic train shakespeare --method ddp", "torch 2.13.0", "How to read this"):  # fmt: skip
        assert text in page.text, text


def test_several_seeds_are_one_line_with_a_band_and_a_range_below_their_means(tmp_path):
    page = Page(write_report([write_seeds(tmp_path / "cmp")]))
    assert "1.4501.250–1.650" in page.text
    assert "2.00 s, 3.0×1.00 s–4.00 s" in page.text
    assert "A line is the mean of 3 seeds, its band goes from the lowest of them to the highest." in page.text
    over_time = page.json("laconic-charts")[0]
    seen = [i for i, view in enumerate(over_time["views"]) if view == "held-out"]
    band, mean = (over_time["figure"]["data"][i] for i in seen[:2])
    assert band["fill"] == "toself"
    assert mean["x"][-1] == pytest.approx(5.1)  # where the first of them was last evaluated
    low = 5 / 51 + 1.1
    assert mean["y"][-1] == pytest.approx((low + low + 0.2 + low + 0.4) / 3)
    at_the_end = [y for x, y in zip(band["x"], band["y"], strict=True) if x == band["x"][len(band["x"]) // 2]]
    assert at_the_end == pytest.approx([low + 0.4, low])
    runs = page.json("laconic-data")["runs"]
    assert [(run["label"], run["seed"], run["folder"]) for run in runs][3:] == [
        ("diloco every=50", seed, f"01/seed-{seed}") for seed in range(3)
    ]
    assert "50%" in page.text  # of the mean's seconds waiting


def test_the_level_to_reach_is_that_of_the_curves_batches(tmp_path):
    folder = write_comparison(tmp_path / "cmp", ["ddp", "diloco"])
    summary = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(summary | {"plain": "ddp", "goal": 1.2345}))
    charts = Page(write_report([folder])).json("laconic-charts")
    assert [chart["figure"]["layout"]["shapes"][0]["y0"] for chart in charts[:3]] == [1.2345] * 3


def test_the_page_refers_to_nothing_outside_itself(tmp_path):
    page = Page(write_report([write_comparison(tmp_path / "cmp")]))
    loading = [(tag, name, value) for tag, attrs in page.tags for name, value in attrs.items()
               if name in ("src", "href", "srcset", "data", "action", "poster", "background")]  # fmt: skip
    assert loading == [("link", "href", "data:,")]
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "img", "base")]
    assert [name for name in page.scripts if re.search(r"@import|url\(", page.scripts[name]) and "style" in name] == []
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy
    assert "http" not in policy


def test_what_comes_from_files_is_text_and_nothing_else(tmp_path):
    page = Page(write_report([write_comparison(tmp_path / "cmp")]))
    assert page.text.count(HOSTILE) >= 5  # table, legend, summary, recipe, verdict
    assert [name for name in page.scripts if name.startswith("laconic")] == ["laconic-data", "laconic-charts"]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 4
    names = {trace["name"] for chart in page.json("laconic-charts")[:3] for trace in chart["figure"]["data"]}
    assert not [name for name in names if "<" in name]  # plotly reads some HTML of its own


def test_the_numbers_are_in_the_page_as_json(tmp_path):
    folder = write_run(tmp_path / "run", loss=lambda n: math.nan if n == 5 else math.inf if n == 6 else 1.0)
    page = Page(write_report([folder]))
    data = page.json("laconic-data")
    assert data["laconic_report"] == 1
    assert data["runs"][0]["steps"]["loss"][3:7] == [1.0, "NaN", "Infinity", 1.0]
    assert data["runs"][0]["summary"]["command"] == "laconic train shakespeare --method diloco"
    assert "diloco: its loss is not a finite number in 2 steps, first in step 5" in page.text


def test_one_run_gets_a_sentence_and_no_columns_that_need_others(tmp_path):
    page = Page(write_report([write_run(tmp_path / "run")], tmp_path / "new" / "page.html"))
    assert "60 steps in 6.00 s, 20% of it waiting, to a held-out loss of 1.250; 60.0 kB sent." in page.text.replace(
        "1.20 s", ""
    )
    assert "Reaches the plain loss" not in page.text
    assert (tmp_path / "new" / "page.html").exists()


def test_runs_that_share_a_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = write_run(tmp_path / "x" / "one"), write_run(tmp_path / "x" / "two", evals=False)
    path = write_report([a, b, a])
    assert path.resolve() == (tmp_path / "report.html").resolve()
    data = Page(path).json("laconic-data")
    assert [run["label"] for run in data["runs"]] == ["diloco (x/one)", "diloco (x/two)"]
    assert "No held-out loss for diloco (x/two)" in Page(path).text


def test_comparisons_and_runs_go_on_one_page(tmp_path):
    folders = [write_comparison(tmp_path / "a", ["ddp"]), write_comparison(tmp_path / "b", ["ddp", "ddp"])]
    page = Page(write_report([*folders, write_run(tmp_path / "c")], tmp_path / "page.html"))
    assert "4 runs side by side" in page.text
    labels = [run["label"] for run in page.json("laconic-data")["runs"]]
    assert labels == ["ddp (a/run0)", "ddp (b/run0)", "ddp (b/run1)", "diloco"]


def test_a_run_cut_short_is_reported_and_says_so(tmp_path):
    folder = write_run(tmp_path / "run", evals=False)
    (folder / "summary.json").unlink()
    page = Page(write_report([folder]))
    assert "run: stopped early: there is no summary.json, and the last step written is 60" in page.text
    assert "Smoothed; the loss of each step is faint behind it." in page.text


def test_an_empty_run_and_a_comparison_without_runs_still_make_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "comparison.json").write_text('{"methods": [{"name": "ddp", "folder": "gone"}]}')
    assert "before its first step" in Page(write_report([tmp_path / "run"])).text
    assert "its run's folder 'gone' is not there" in Page(write_report([tmp_path])).text


def test_the_figures_are_what_plotly_knows(tmp_path):
    drawn = report_charts.lines([("a", read(write_run(tmp_path / "a"))), ("b", read(write_run(tmp_path / "b")))])
    for chart in (*report_charts.loss_charts(drawn, ("a", 1.2)), report_charts.seconds_chart(drawn)):
        go.Figure(chart.figure)  # raises for a property it does not know
    assert [c.figure["layout"]["xaxis"]["type"] for c in report_charts.loss_charts(drawn)] == ["linear"] * 3


def test_bytes_are_drawn_on_a_log_axis_when_methods_differ_tenfold(tmp_path):
    runs = [("a", read(write_run(tmp_path / "a"))), ("b", read(write_run(tmp_path / "b", step_bytes=100_000)))]
    assert report_charts.loss_charts(report_charts.lines(runs))[2].figure["layout"]["xaxis"]["type"] == "log"


def test_a_long_run_is_drawn_in_minutes_or_hours(tmp_path):
    drawn = report_charts.lines([("a", read(write_run(tmp_path / "a", steps=7_000)))])  # 700 s
    over_time, split = report_charts.loss_charts(drawn)[0], report_charts.seconds_chart(drawn)
    assert over_time.figure["layout"]["xaxis"]["title"]["text"] == "minutes since training began"
    assert over_time.figure["data"][1]["x"][-1] == pytest.approx(700 / 60)
    assert split.figure["layout"]["xaxis"]["title"]["text"] == "minutes"
    assert "after 11m 39s" in over_time.summary  # the last evaluation, at step 6,991
    assert [report_charts.time_unit(x)[1] for x in (60, 3600, 86400)] == ["seconds", "minutes", "hours"]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=400), st.integers(10, 60))
def test_a_thinned_curve_keeps_its_ends_its_extremes_and_what_is_not_finite(y, points):
    x, thin = thinned(list(range(len(y))), y, points)
    assert len(thin) <= max(points, 0)
    assert x == sorted(set(x))
    assert [repr(y[int(i)]) for i in x] == [repr(value) for value in thin]
    finite, thin_finite = [v for v in y if math.isfinite(v)], [v for v in thin if math.isfinite(v)]
    if y:
        assert (x[0], x[-1]) == (0, len(y) - 1)
    if finite:
        assert (min(finite), max(finite)) == (min(thin_finite), max(thin_finite))
    assert (len(finite) == len(y)) == (len(thin_finite) == len(thin))


def test_a_long_run_makes_a_short_page_with_its_one_spike(tmp_path):
    folder = write_run(tmp_path / "run", steps=20_000, loss=lambda n: 99.0 if n == 12_345 else 2.0)
    page = Page(write_report([folder]))
    curves = [trace["y"] for chart in page.json("laconic-charts")[:3] for trace in chart["figure"]["data"]]
    assert max(map(len, curves)) <= POINTS
    assert len([y for y in curves if 99.0 in y]) == 3
    assert len(page.json("laconic-data")["runs"][0]["steps"]["loss"]) <= POINTS


def test_smoothing_keeps_a_constant_and_passes_over_what_is_not_finite():
    means = smoothed([2.0, 2.0, math.nan, 2.0])
    assert means[:2] + means[3:] == pytest.approx([2.0, 2.0, 2.0])
    assert math.isnan(means[2])


def test_seconds_not_accounted_for_are_other():
    parts = seconds_split({"seconds": 10.0, **dict.fromkeys(SPENT, 3.0)})
    assert parts == dict.fromkeys(SPENT, 3.0) | {"other": 1.0}
    assert seconds_split({"seconds": 10.0}) == {}
    assert seconds_split({"seconds": math.nan, "seconds_waiting": 1.0}) == {"seconds_waiting": 1.0}


def test_no_text_ends_the_script_it_is_in():
    text = report_page.embedded({"a": HOSTILE})
    assert "<" not in text
    assert json.loads(text) == {"a": HOSTILE}


def test_without_plotly_the_error_has_the_install_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install 'plotly"):
        write_report([write_run(tmp_path / "run")])


def test_no_folder_is_an_error():
    with pytest.raises(ConfigError, match="give at least one run's folder"):
        write_report([])


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER} (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


def opened(browser, path, width=1200):
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.drawn"))


DRAWN = """return [...document.querySelectorAll('.plot')].map((plot) => {
  const box = plot.querySelector('svg.main-svg').getBoundingClientRect();
  return {id: plot.id, width: box.width, height: box.height,
          traces: plot.querySelectorAll('.scatterlayer .trace, .barlayer .trace').length};
})"""


@pytest.mark.browser
def test_a_browser_draws_the_charts_and_asks_nobody_for_anything(tmp_path, browser):
    path = write_report([write_comparison(tmp_path / "cmp")])
    opened(browser, path)
    charts = browser.execute_script(DRAWN)
    assert [chart["id"] for chart in charts] == ["plot-seconds", "plot-tokens", "plot-bytes", "plot-split"]
    assert all(chart["width"] > 300 and chart["height"] > 100 for chart in charts), charts
    assert [chart["traces"] for chart in charts] == [3, 3, 3, 4]  # a line a method; computing … other

    table = browser.find_element("css selector", "table.numbers").text
    assert [name in table for name in ("ddp", "diloco", HOSTILE)] == [True] * 3
    assert "60.0 MB" in table
    assert browser.title == "3 ways to train on shakespeare"  # and not "owned"
    assert browser.execute_script("return document.images.length") == 0

    # The views and the legend work, with the mouse's own events.
    browser.find_element("css selector", "[data-view=training]").click()
    assert [chart["traces"] for chart in browser.execute_script(DRAWN)] == [6, 6, 6, 4]
    browser.find_element("css selector", "button.method").click()
    assert [chart["traces"] for chart in browser.execute_script(DRAWN)] == [4, 4, 4, 4]

    assert browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    ours = {
        r["request"]["url"] for r in requests if r["documentURL"] == path.as_uri()
    }  # not the browser's start page's
    assert {url for url in ours if not url.startswith("data:")} == {path.as_uri()}
    assert browser.get_log("browser") == []

    refused = browser.execute_async_script(
        "document.addEventListener('securitypolicyviolation', (e) => arguments[0](e.violatedDirective));"
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/pixel.png'}))"
    )
    assert refused == "img-src"  # the page's own policy holds, whatever gets into it


@pytest.mark.browser
def test_a_browser_draws_the_three_charts_of_several_seeds_side_by_side_with_their_bands(tmp_path, browser):
    opened(browser, write_report([write_seeds(tmp_path / "cmp")]))
    charts = browser.execute_script(DRAWN)
    assert [chart["traces"] for chart in charts] == [4, 4, 4, 3]  # of each way a band and a line
    tops = browser.execute_script(
        "return [...document.querySelectorAll('.charts .plot')].map((plot) => plot.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 1
    assert all(chart["width"] > 300 for chart in charts)
    filled = browser.execute_script("return document.querySelectorAll('#plot-seconds .scatterlayer .js-fill').length")
    assert filled == 2
    browser.find_element("css selector", "button.method").click()
    assert [chart["traces"] for chart in browser.execute_script(DRAWN)][:3] == [2, 2, 2]  # its band goes with it
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_a_narrow_screen_scrolls_tables_and_never_the_page(tmp_path, browser):
    opened(browser, write_report([write_comparison(tmp_path / "cmp")]), width=420)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
    assert all(250 < chart["width"] <= 420 for chart in browser.execute_script(DRAWN))


@pytest.mark.browser
def test_runs_with_nothing_to_draw_break_nothing(tmp_path, browser):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    opened(browser, write_report([tmp_path / "run"]))
    assert browser.get_log("browser") == []

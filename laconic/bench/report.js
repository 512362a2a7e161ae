"use strict";
// Draws the charts that the page carries as JSON, in the colours of the page, light or dark.
(() => {
  const spec = JSON.parse(document.getElementById("laconic-charts").textContent);
  const hidden = new Set();
  const scales = {};
  let view = "held-out";

  function decades(chart) {
    const logs = chart.figure.data.flatMap((trace) => trace.x).filter((x) => x > 0).map(Math.log10);
    const [low, high] = logs.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
    return high - low;
  }

  // The pixels a bar of so many seconds gets, near enough to know whether a percentage fits in it.
  function room(chart, element, seconds) {
    const totals = chart.figure.data[0].x.map((_, bar) => chart.figure.data.reduce((sum, trace) => sum + trace.x[bar], 0));
    const names = Math.max(...chart.figure.layout.meta.short.map((name) => name.length));
    return (element.clientWidth - 7 * names - 30) * seconds / (1.05 * Math.max(...totals));
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function draw(chart) {
    const element = document.getElementById("plot-" + chart.key);
    const [ink, faint, grid, paper] = ["--ink", "--faint", "--grid", "--paper"].map(colour);
    const axis = { gridcolor: grid, linecolor: grid, tickcolor: grid, tickfont: { color: faint } };
    const layout = {
      ...chart.figure.layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: paper, bordercolor: grid, font: { color: ink, size: 12 }, align: "left", namelength: -1 },
    };
    layout.xaxis = { ...chart.figure.layout.xaxis, ...axis };
    layout.yaxis = { ...chart.figure.layout.yaxis, ...axis };
    if (chart.key === "split" && element.clientWidth < 560) layout.yaxis.ticktext = layout.meta.short;
    if (chart.key in scales) layout.xaxis.type = scales[chart.key];
    // A small screen has no room for many numbers; plotly would turn them on their sides.
    if (layout.xaxis.type === "log" && decades(chart) >= 2) layout.xaxis.dtick = 1;
    layout.xaxis.nticks = element.clientWidth < 480 ? 5 : 9;
    layout.shapes = (layout.shapes || []).filter(() => view === "held-out")
      .map((s) => ({ ...s, line: { ...s.line, color: faint }, label: { ...s.label, font: { ...s.label.font, color: faint } } }));
    const data = chart.figure.data.map((trace, i) =>
      chart.views.length ? { ...trace, visible: chart.views[i] === view && !hidden.has(chart.owners[i]) }
        : { ...trace, text: trace.text.map((text, bar) => room(chart, element, trace.x[bar]) < 34 ? "" : text) });
    const config = { responsive: true, displaylogo: false, displayModeBar: false, doubleClick: "reset" };
    return Plotly.react(element, data, layout, config);
  }

  const drawAll = () => Promise.all(spec.map(draw));
  const all = (selector) => Array.from(document.querySelectorAll(selector));
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  for (const button of all("button.method")) {
    button.addEventListener("click", () => {
      const owner = Number(button.dataset.owner);
      if (!hidden.delete(owner)) hidden.add(owner);
      press(button, !hidden.has(owner));
      drawAll();
    });
  }
  for (const button of all(".views button")) {
    button.addEventListener("click", () => {
      view = button.dataset.view;
      all(".views button").forEach((other) => press(other, other === button));
      drawAll();
    });
  }
  for (const button of all("button.log")) {
    const chart = spec.find((one) => one.key === button.dataset.chart);
    scales[chart.key] = chart.figure.layout.xaxis.type;
    press(button, scales[chart.key] === "log");
    button.addEventListener("click", () => {
      scales[chart.key] = scales[chart.key] === "log" ? "linear" : "log";
      press(button, scales[chart.key] === "log");
      draw(chart);
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  const printing = (on) => () => { document.documentElement.classList.toggle("printing", on); drawAll(); };
  addEventListener("beforeprint", printing(true));
  addEventListener("afterprint", printing(false));
  drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();

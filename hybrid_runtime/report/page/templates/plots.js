"use strict";
// Draws every <div class="plot" data-figure="ID"> from the page's data, in the colours of the reader's paper.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures"), colours = read("colours");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const PRINT_WIDTH_PX = 680; // what fits between the margins of A4 and Letter
  let printing = false;

  const colour = (name) => (Object.hasOwn(colours, name) ? colours[name][!printing && dark.matches ? 1 : 0] : name);

  // The same data with the palette's names replaced, in keys that end in "color" only: texts stay what they are.
  function painted(value, key = "") {
    if (Array.isArray(value)) return /color$/.test(key) || typeof value[0] === "object" ? value.map((one) => painted(one, key)) : value;
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, painted(one, name)]));
    return typeof value === "string" && /color$/.test(key) ? colour(value) : value;
  }

  function themed(layout) {
    const full = painted(layout);
    const axis = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
    for (const name of Object.keys(full)) if (/^[xy]axis/.test(name)) full[name] = { ...axis, ...full[name] };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      dragmode: touch ? false : "zoom", margin: { l: 10, r: 14, t: 12, b: 44 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("ink") },
      ...full, ...(printing ? { width: PRINT_WIDTH_PX } : {}),
    };
  }

  const config = {
    responsive: true, displaylogo: false, displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d"],
  };

  const shown = (plot) => figures[plot.dataset.figure][Number(plot.dataset.view || 0)];

  // Plotly widens opaque bars to a pixel; thousands of short waits would then look like most of the step. The last two
  // digits make the colour a shade less than opaque, and a bar of a third of a pixel is seen one time in three.
  const timed = ({ boxes, hovertext, x, base, marker }) => boxes ? {
    hovertext: hovertext.map((name, number) => `${name}: ${x[number]} ms from ${base[number]} ms`),
    marker: { ...marker, color: `${marker.color}fe`, line: { ...marker.line, width: innerWidth < 700 ? 0 : marker.line.width } },
  } : {};

  function draw(plot) {
    const view = shown(plot), hidden = new Set(JSON.parse(plot.dataset.hidden || "[]"));
    const traces = painted(view.traces).map((trace) => ({ ...trace, ...timed(trace), visible: !hidden.has(trace.name) }));
    const done = Plotly.react(plot, traces, themed(view.layout), config);
    keys(plot, traces, hidden);
    return done;
  }

  // The legend is text of the page: it wraps on a phone, is found by a search, and switches traces on and off.
  function keys(plot, traces, hidden) {
    const holder = plot.parentElement.querySelector(".keys");
    const named = new Map(traces.filter((trace) => trace.showlegend !== false).map((trace) => [trace.name, trace]));
    holder.replaceChildren(...[...named].map(([name, trace]) => {
      const button = document.createElement("button"), sign = document.createElement("i");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      mark(sign, trace);
      button.append(sign, name);
      button.onclick = () => {
        if (!hidden.delete(name)) hidden.add(name);
        plot.dataset.hidden = JSON.stringify([...hidden]);
        draw(plot);
      };
      return button;
    }));
  }

  function mark(sign, trace) {
    const area = trace.mode === "none", paint = area ? trace.fillcolor : trace.marker.color;
    const hollow = /open/.test(trace.marker?.symbol || "");
    sign.style.opacity = area ? 0.35 : 1;
    if (trace.marker?.pattern) sign.style.background = `repeating-linear-gradient(135deg, ${paint} 0 2px, transparent 2px 5px)`;
    else if (hollow) sign.style.border = `2px solid ${paint}`;
    else sign.style.background = paint;
    const symbol = trace.marker?.symbol || "";
    if (trace.type === "scatter" && !area) sign.style.borderRadius = /circle/.test(symbol) ? "50%" : "0";
    if (/diamond/.test(symbol)) sign.style.transform = "rotate(45deg) scale(0.75)";
    if (/line/.test(symbol)) sign.style.width = "3px";
  }

  function move(plot, how) {
    const [start, end] = plot.layout.xaxis.range, length = end - start, whole = shown(plot).layout.xaxis.range;
    const range = {
      in: [start + length / 4, end - length / 4], out: [start - length / 2, end + length / 2],
      left: [start - length / 3, end - length / 3], right: [start + length / 3, end + length / 3], whole,
    }[how];
    Plotly.relayout(plot, { "xaxis.range": range });
  }

  const plots = [...document.querySelectorAll(".plot")];

  function controls(plot) {
    const figure = plot.parentElement, choice = figure.querySelector("select");
    if (choice) choice.onchange = () => { plot.dataset.view = choice.value; draw(plot); };
    for (const button of figure.querySelectorAll("button[data-move]")) button.onclick = () => move(plot, button.dataset.move);
  }

  // One after the other, so that the text can be read and scrolled meanwhile.
  async function drawAll() {
    for (const plot of plots) {
      controls(plot);
      await draw(plot);
      await new Promise((next) => setTimeout(next));
    }
    document.documentElement.dataset.drawnMs = String(Math.round(performance.now()));
  }

  const redraw = () => plots.forEach((plot) => draw(plot));
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  drawAll();
})();

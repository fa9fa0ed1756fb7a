// Curves: which numbers stand in which panel, and how Plotly draws them.
"use strict";

const Charts = (() => {
  // By panel, the keys of metrics.jsonl that it shows, an `eval_` in front left out; what no panel names stands under
  // "More numbers", unless it is always 0.
  const PANELS = [
    { title: "Loss", keys: /^loss$/, wide: true, noisy: true, marks: true },
    { title: "Held-out bits per byte", keys: /^held_out\/(.+)\/bits_per_byte$/ },
    { title: "Reward of answers", keys: /^rewards\/(chosen|rejected)$/, noisy: true },
    { title: "Reward margin", keys: /^rewards\/margins$/, noisy: true },
    { title: "Pairs ranked right", keys: /^rewards\/accuracies$/, noisy: true, percent: true },
    { title: "Log-probability of answers", keys: /^logps\/(chosen|rejected)$/, noisy: true },
    { title: "Answers that end by themselves", keys: /^stop_rate$/, percent: true },
    { title: "Learning rate", keys: /^learning_rate$/ },
    { title: "Gradient norm", keys: /^grad_norm$/, noisy: true },
    { title: "Tokens per second", keys: /^tokens_per_second$/, noisy: true, large: true },
    { title: "Model FLOPs utilisation", keys: /^mfu$/, noisy: true, percent: true },
    { title: "Peak memory, GiB", keys: /^memory_gib$/ },
    { title: "Time spent waiting for data", keys: /^data_wait_share$/, noisy: true, percent: true },
  ];
  const MIXTURE = /^mixture\/(.+)$/;
  const COLOURS = {
    light:
      "#2f62c9 #c8611d #1f8a63 #a8408f #6f56c5 #b3372f #2b8ba3 #7d7a1c #d0508a #5d6b7e " +
      "#8fb0f0 #e8ac7f #84cbb0 #dc9bcf #b9abec #e59a95 #8ecbd9 #bdba6a #eda9c6 #a8b4c4",
    dark:
      "#7ea6f5 #f0995a #5cc197 #dd84c8 #ac98f2 #ee8079 #64c0d6 #c6c25c #f08db6 #a3b0c2 " +
      "#4570c4 #b0652c #2c8562 #9c4a88 #715cbb #ad4740 #2f8398 #85812c #b25580 #66748a",
  };
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const KINDS = {
    good: ["resumed", "data change"],
    bad: ["spike", "skipped", "rollback", "out of memory", "not saved", "not finite", "hang", "displacement"],
  };
  const LINES = 40; // events whose vertical line is drawn; more would hide the curve
  const LINED_RUNS = 3; // more runs' events have no lines
  const MARKERS = 60; // fewer points than that are drawn as dots, too

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = () => COLOURS[document.documentElement.dataset.theme === "dark" ? "dark" : "light"].split(" ");
  const colour = (index) => colours()[index % colours().length];
  const faint = (hex, share) =>
    hex +
    Math.round(share * 255)
      .toString(16)
      .padStart(2, "0");
  // Plotly reads a few HTML tags in texts; those of run files are to be read as they are.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function eventClass(kind) {
    if (KINDS.bad.includes(kind)) return "bad";
    return KINDS.good.includes(kind) ? "good" : "warn";
  }

  // Panels with the curves that the runs have for them: [{title, curves: [{run, key, label}]}].
  function panels(runs) {
    const found = new Map(PANELS.map((panel) => [panel.title, { ...panel, curves: [] }]));
    const phases = new Set(runs.filter((run) => run.curves.loss).map((run) => run.phase));
    for (const run of runs) {
      for (const [key, curve] of Object.entries(run.curves)) {
        if (MIXTURE.test(key)) continue;
        const heldOut = key.startsWith("eval_");
        const bare = heldOut ? key.slice(5) : key;
        let panel = PANELS.find((candidate) => candidate.keys.test(bare));
        // losses of different kinds of runs are different quantities
        if (panel?.marks && phases.size > 1) panel = { ...panel, title: `Loss, ${run.phase || "other runs"}` };
        if (!panel) {
          panel = { title: bare, keys: null, more: true, noisy: true };
          if (!found.has(bare) && !curve.mean.some((value) => value !== 0)) continue;
        }
        if (!found.has(panel.title)) found.set(panel.title, { ...panel, curves: [] });
        const part = (panel.keys && panel.keys.exec(bare)[1]) || "";
        const label = [part, heldOut ? "held-out" : ""].filter(Boolean).join(", ");
        found.get(panel.title).curves.push({ run, key, label });
      }
    }
    const filled = [...found.values()].filter((panel) => panel.curves.length);
    return [...filled.filter((panel) => panel.marks), ...filled.filter((panel) => !panel.marks)];
  }

  // The points of a curve inside the range, with a neighbour at each side: {x, y, low, high, smooth}; smoothed before
  // they are cut, so that a curve is the same at every range.
  function pointsOf(run, key, view, over = 0) {
    const curve = run.curves[key],
      table = run.tables[curve.table],
      along = table[view.axis];
    if (!along) return null;
    let first = 0,
      last = along.length;
    if (view.range) {
      while (first < along.length && along[first] < view.range[0]) first++;
      while (last > 0 && along[last - 1] > view.range[1]) last--;
      first = Math.max(0, first - 1);
      last = Math.min(along.length, last + 1);
    }
    const cut = (values) => values && values.slice(first, last);
    return {
      x: cut(along),
      y: cut(curve.mean),
      low: cut(curve.low),
      high: cut(curve.high),
      smooth: over < 1 ? null : cut(smoothed(curve, table, over)),
    };
  }

  // Records over which a slider position smooths: up to a seventh of the longest run's; the same for all curves.
  function smoothingRecords(position, runs) {
    const totals = runs.flatMap((run) => run.tables.map((table) => table.total));
    return Math.max(0, ...totals) * 0.15 * (position / 100) ** 2;
  }

  // Exponential mean over records, the first ones not biased towards zero; a point stands for all its records.
  function smoothed(curve, table, over) {
    const earlier = curve.before || [],
      records = earlier.length ? [...table.before, ...table.records] : table.records;
    let sum = 0,
      weight = 0;
    const means = [...earlier, ...curve.mean].map((value, index) => {
      if (value === null) return null;
      const kept = Math.exp(-records[index] / over);
      sum = sum * kept + value * (1 - kept);
      weight = weight * kept + (1 - kept);
      return Number((sum / weight).toPrecision(6)); // as exact as what comes in: a flat curve stays flat
    });
    return means.slice(earlier.length);
  }

  // Where a step stands along the axis, between its neighbours; null where that is unknown.
  function position(run, step, axis) {
    if (axis === "step") return step;
    const table = run.tables.reduce((best, t) => (t.step.length > best.step.length ? t : best), run.tables[0]);
    if (!table || !table[axis]) return null;
    const after = table.step.findIndex((known) => known >= step);
    if (after < 0) return table[axis][table.step.length - 1];
    if (after === 0 || table.step[after] === step) return table[axis][after];
    const share = (step - table.step[after - 1]) / (table.step[after] - table.step[after - 1]);
    return table[axis][after - 1] + share * (table[axis][after] - table[axis][after - 1]);
  }

  function traces(panel, view, runs) {
    const drawn = [],
      many = runs.length > 1,
      over = panel.noisy ? smoothingRecords(view.smooth, runs) : 0;
    panel.curves.forEach((curve) => {
      if (curve.off) return;
      const points = pointsOf(curve.run, curve.key, view, curve.key.startsWith("eval_") ? 0 : over);
      if (!points || !points.x.length) return;
      const name = plain([many ? curve.run.name : "", curve.label].filter(Boolean).join(" · ") || panel.title);
      const base = { type: "scatter", x: points.x, legendgroup: name, showlegend: false };
      if (points.low) {
        drawn.push({
          ...base,
          x: [...points.x, ...[...points.x].reverse()],
          y: [...points.high, ...[...points.low].reverse()],
          mode: "lines",
          fill: "toself",
          fillcolor: faint(curve.colour, 0.16),
          line: { width: 0 },
          hoverinfo: "skip",
        });
      }
      if (points.smooth) {
        drawn.push({
          ...base,
          y: points.y,
          mode: "lines",
          line: { color: faint(curve.colour, 0.3), width: 1 },
          hoverinfo: "skip",
        });
      }
      const format = panel.percent ? ".1%" : ".4~g";
      const extremes = points.low && `%{customdata[1]:${format}} to %{customdata[2]:${format}}`;
      const also = [extremes, points.smooth && `smoothed %{y:${format}}`].filter(Boolean).join("; ");
      drawn.push({
        ...base,
        y: points.smooth || points.y,
        name,
        mode: points.x.length < MARKERS ? "lines+markers" : "lines",
        line: { color: curve.colour, width: 1.8, dash: curve.dash },
        marker: { size: 5, color: curve.colour },
        customdata: points.y.map((mean, i) => [mean, points.low?.[i], points.high?.[i]]),
        hovertemplate: `%{customdata[0]:${format}}${also && `  (${also})`}<extra>%{fullData.name}</extra>`,
      });
    });
    return drawn;
  }

  // Checkpoints and events in a strip under the curves; the worst of them as lines through the curves.
  // Of many runs lines are drawn for one alone, the one in detail.
  function marks(runs, view, layout) {
    const drawn = [];
    const inside = (x) => x !== null && (!view.range || (x >= view.range[0] && x <= view.range[1]));
    const strip = { type: "scatter", mode: "markers", yaxis: "y2", showlegend: false, cliponaxis: false };
    runs.forEach((run, index) => {
      const suffix = runs.length > 1 ? `<br>${plain(run.name)}` : "";
      const saved = run.checkpoints.map((step) => [position(run, step, view.axis), step]).filter(([x]) => inside(x));
      drawn.push({
        ...strip,
        x: saved.map(([x]) => x),
        y: saved.map(() => (runs.length > 1 ? 0.08 + (0.4 * index) / (runs.length - 1) : 0.25)),
        marker: { symbol: "triangle-up", size: 9, color: run.colour },
        text: saved.map(([, step]) => `checkpoint of step ${step.toLocaleString("en")}${suffix}`),
        hovertemplate: "%{text}<extra></extra>",
      });
      const events = run.events.shown
        .map((e) => ({ ...e, x: position(run, e.step, view.axis) }))
        .filter((e) => inside(e.x));
      const shade = (e) => css({ bad: "--bad", good: "--accent", warn: "--warn" }[eventClass(e.kind)]);
      drawn.push({
        ...strip,
        x: events.map((e) => e.x),
        y: events.map(() => 0.78),
        marker: { symbol: "diamond", size: 8, color: events.map(shade) },
        text: events.map(
          (e) => `<b>${plain(e.kind)}</b> at step ${e.step.toLocaleString("en")}${suffix}<br>${folded(e.text)}`,
        ),
        hovertemplate: "%{text}<extra></extra>",
      });
      const lines = runs.length <= LINED_RUNS || run.name === view.focus ? events.slice(-LINES) : [];
      for (const event of lines) {
        layout.shapes.push({
          type: "line",
          x0: event.x,
          x1: event.x,
          yref: "paper",
          y0: 0.1,
          y1: 1,
          layer: "below",
          line: { color: faint(shade(event), 0.55), width: 1, dash: "dot" },
        });
      }
    });
    return drawn;
  }

  // A text on lines of some sixty characters.
  function folded(text) {
    const lines = [""];
    for (const word of String(text).slice(0, 300).split(/\s+/)) {
      if (lines[lines.length - 1].length + word.length > 60) lines.push("");
      lines[lines.length - 1] += (lines[lines.length - 1] ? " " : "") + word;
    }
    return lines.map(plain).join("<br>");
  }

  function layoutOf(panel, view, many) {
    const axis = {
      gridcolor: css("--grid"),
      linecolor: css("--line"),
      zeroline: false,
      automargin: true,
      tickfont: { size: 11 },
    };
    const layout = {
      paper_bgcolor: css("--card"),
      plot_bgcolor: css("--card"),
      margin: { l: 44, r: 12, t: 8, b: 34 },
      shapes: [],
      font: { color: css("--soft"), family: "system-ui, sans-serif", size: 12 },
      showlegend: false,
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // on a phone a finger scrolls the page
      hovermode: many > 8 ? "closest" : "x unified",
      hoverlabel: {
        bgcolor: css("--card"),
        bordercolor: css("--line"),
        font: { color: css("--text"), size: 12 },
        align: "left",
        namelength: 40,
      },
      xaxis: { ...axis, type: view.logX ? "log" : "linear", exponentformat: "B" },
      yaxis: {
        ...axis,
        type: view.logY && !panel.stacked ? "log" : "linear",
        fixedrange: true,
        exponentformat: panel.large ? "B" : "e",
      },
    };
    layout.xaxis.unifiedhovertitle = {
      text: { step: "step %{x:,d}", tokens: "%{x:.4~s} tokens", hours: "%{x:.2f} hours" }[view.axis],
    };
    if (view.range) layout.xaxis.range = view.logX ? view.range.map((x) => Math.log10(Math.max(x, 1e-9))) : view.range;
    if (panel.percent) Object.assign(layout.yaxis, { tickformat: ".3~%", minallowed: 0 });
    if (panel.marks) {
      layout.yaxis.domain = [0.13, 1];
      layout.xaxis.anchor = "y2";
      layout.yaxis2 = { domain: [0, 0.1], range: [0, 1], visible: false, fixedrange: true };
    }
    return layout;
  }

  // Around curves that all are one flat line; otherwise Plotly finds the range.
  function flatRange(drawn, log) {
    const values = drawn.flatMap((trace) => trace.y).filter((value) => value !== null);
    const [value] = values;
    if (!values.length || values.some((other) => other !== value) || (log && value <= 0)) return undefined;
    const around = value === 0 ? [-1, 1] : [value - Math.abs(value) / 4, value + Math.abs(value) / 4];
    return log ? around.map(Math.log10) : around;
  }

  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };

  function draw(place, panel, view, runs) {
    const drawn = panel.stacked ? stacked(panel, view) : traces(panel, view, runs);
    const layout = layoutOf(panel, view, drawn.length);
    if (!panel.stacked) layout.yaxis.range = flatRange(drawn, view.logY);
    const here = runs.filter((run) => panel.curves.some((curve) => curve.run.name === run.name));
    if (panel.marks) drawn.push(...marks(here, view, layout));
    return Plotly.react(place, drawn, layout, CONFIG);
  }

  // Shares of the sources of one run, on top of each other.
  function stacked(panel, view) {
    return panel.curves
      .filter((curve) => !curve.off)
      .map((curve) => {
        const points = pointsOf(curve.run, curve.key, view) || { x: [], y: [] };
        return {
          type: "scatter",
          mode: "lines",
          stackgroup: "shares",
          x: points.x,
          y: points.y,
          name: plain(curve.label),
          line: { width: 0.6, color: curve.colour },
          fillcolor: faint(curve.colour, 0.6),
          hovertemplate: "%{y:.1%}<extra>%{fullData.name}</extra>",
        };
      });
  }

  function mixture(run) {
    const curves = Object.keys(run.curves).filter((key) => MIXTURE.test(key));
    const labelled = curves.map((key) => ({ run, key, label: MIXTURE.exec(key)[1] }));
    return { title: "Tokens so far, by source", stacked: true, percent: true, curves: labelled };
  }

  // Colours tell runs apart where there are several, curves of a panel where there is one; then dashes do the rest.
  function paint(panel, runs) {
    const labels = [...new Set(panel.curves.map((curve) => curve.label))];
    for (const curve of panel.curves) {
      const index = labels.indexOf(curve.label);
      const byRun = runs.length > 1 && !panel.stacked;
      curve.colour = byRun ? curve.run.colour : labels.length > 1 ? colour(index) : runs[0].colour;
      curve.dash = byRun ? DASHES[index % DASHES.length] : "solid";
    }
    return labels;
  }

  return { panels, mixture, paint, draw, colour, eventClass, smoothingRecords };
})();

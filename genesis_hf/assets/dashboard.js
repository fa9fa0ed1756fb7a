// The page: the table of runs, panels of curves and what they are drawn with, one run in detail.
"use strict";

(() => {
  const { element, make, whole, stateNow, runRow, options, replaceKeepingFocus } = Words;
  const STORE = "genesis_hf dashboard";
  const view = { axis: "step", logX: false, logY: false, smooth: 30, range: null, focus: null, prompt: null };
  const UNREADABLE = {
    ...{ phase: "", read: 1, version: null, figures: {}, tables: [], curves: {}, checkpoints: [], unreadable: 0 },
    status: { state: "silent", step: null, last_step: null, seconds_left: null, news: null, patience: 0 },
    events: { shown: [], counts: {} },
    samples: { prompts: [], steps: [], texts: [], all_steps: 0 },
  }; // a run of which the server has only its name, and what went wrong
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const runs = new Map(); // by name
  const off = { runs: new Set(), curves: new Set() };
  let focused = null; // the run shown in detail: view.focus where that is there
  const places = new Map(); // by panel title: {card, plot, head, chips, panel, stale, seen}
  const embedded = element("data") ? JSON.parse(element("data").textContent) : null;
  const source = embedded ? Source.still(embedded, { runs, take, appended }) : Source.live({ runs, view, take, pulse });

  // --------------------------------------------------------------------------------------------- the table of runs

  function drawRuns() {
    const body = element("runs").tBodies[0];
    element("empty").hidden = runs.size > 0;
    element("runs").hidden = runs.size === 0;
    const focused = document.activeElement && document.activeElement.dataset.run;
    body.replaceChildren(
      ...[...runs.values()].map((run) => runRow(run, !off.runs.has(run.name), () => toggleRun(run.name))),
    );
    const cells = (index) => [...body.rows].map((row) => row.cells[index]);
    [...element("runs").tHead.rows[0].cells].forEach((head, index) => {
      const unused = !cells(index).some((cell) => cell.textContent);
      for (const cell of [head, ...cells(index)]) cell.hidden = unused;
    });
    if (focused) [...body.querySelectorAll("input")].find((input) => input.dataset.run === focused)?.focus();
  }

  function toggleRun(name) {
    off.runs.has(name) ? off.runs.delete(name) : off.runs.add(name);
    remember();
  }

  // Which colour is whose, where the table has scrolled away.
  function drawKey() {
    const visible = shown();
    element("key").hidden = visible.length < 2;
    element("key").replaceChildren(
      ...visible.map((run) => {
        const item = make("li", { title: run.name }, make("i"), run.name);
        item.style.setProperty("--swatch", run.colour);
        return item;
      }),
    );
  }

  const shown = () => [...runs.values()].filter((run) => !off.runs.has(run.name));

  // ------------------------------------------------------------------------------------------------------- curves

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const place = [...places.values()].find((candidate) => candidate.card === entry.target);
        if (place) place.seen = entry.isIntersecting;
      }
      drawSeen();
    },
    { rootMargin: "300px" },
  );

  function placeOf(panel, parent) {
    let place = places.get(panel.title);
    if (!place) {
      const head = make("b"),
        chips = make("ul", { class: "chips" }),
        plot = make("div", { class: "plot", role: "img" });
      const title = make("div", { class: "title" }, make("h3", {}, panel.title), head);
      const card =
        parent.id === "mixture" ? parent : make("figure", { class: `card panel ${panel.wide ? "wide" : ""}` });
      card.style.margin = "0";
      card.append(title, chips, plot);
      if (card !== parent) parent.append(card);
      place = { card, plot, head, chips, seen: false };
      places.set(panel.title, place);
      near.observe(card);
    }
    return Object.assign(place, { panel, stale: true });
  }

  function drawCurves() {
    const visible = shown();
    const wanted = Charts.panels(visible);
    for (const panel of wanted) fill(placeOf(panel, element(panel.more ? "others" : "panels")), visible);
    const titles = new Set(wanted.map((panel) => panel.title));
    wanted.forEach((panel, index) => (places.get(panel.title).card.style.order = index)); // some come later
    for (const [title, place] of places) if (place.card.id !== "mixture") place.card.hidden = !titles.has(title);
    element("more").hidden = !wanted.some((panel) => panel.more);
    drawSeen();
  }

  // Everything of a panel but the plot: its newest value, the chips that switch curves on and off.
  function fill(place, visible) {
    const { panel } = place,
      labels = Charts.paint(panel, visible);
    for (const curve of panel.curves) curve.off = off.curves.has(`${panel.title}|${curve.label}`);
    const only = panel.curves.length === 1 && !view.range ? panel.curves[0] : null;
    const newest = only && only.run.curves[only.key].mean.at(-1);
    const value = (number) =>
      panel.percent ? `${(100 * number).toFixed(1)} %` : String(Number(number.toPrecision(4)));
    const lost = only && only.key === "loss" && only.run.figures.loss === null;
    const words = lost ? "not finite" : typeof newest === "number" ? value(newest) : "";
    place.head.textContent = words;
    place.plot.setAttribute(
      "aria-label",
      `${panel.title}${words && `, newest value ${words}`}; ${visible.map((run) => run.name).join(", ")}`,
    );
    const chips = labels.length < 2 ? [] : labels.map((label) => chip(panel, label));
    replaceKeepingFocus(place.chips, chips);
  }

  function chip(panel, label) {
    const curves = panel.curves.filter((candidate) => candidate.label === label),
      key = `${panel.title}|${label}`;
    const [curve] = curves,
      colour = curves.every((other) => other.colour === curve.colour) ? curve.colour : "currentColor";
    const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    line.innerHTML = '<line x1="0" x2="20" y1="3" y2="3" stroke-width="3"/>';
    line.firstChild.setAttribute("stroke", colour);
    line.firstChild.setAttribute(
      "stroke-dasharray",
      { dash: "5 3", dot: "2 3", dashdot: "5 2 2 2", longdash: "8 3" }[curve.dash] || "none",
    );
    const press = () => {
      off.curves.has(key) ? off.curves.delete(key) : off.curves.add(key);
      remember();
    };
    const attributes = { type: "button", "aria-pressed": String(!off.curves.has(key)), onclick: press };
    return make("li", {}, make("button", attributes, line, label || "training"));
  }

  function drawSeen() {
    if (!window.Plotly) return; // the largest script comes last; the rest of the page is there by then
    const visible = shown();
    for (const place of places.values()) {
      if (!place.stale || !place.seen || place.card.hidden) continue;
      place.stale = false;
      const drawn = place.panel.stacked ? [place.panel.curves[0].run] : visible;
      Charts.draw(place.plot, place.panel, { ...view, focus: focused }, drawn);
      if (!place.listening) {
        place.listening = true;
        place.plot.on("plotly_relayout", zoomed);
        place.plot.on("plotly_doubleclick", () => zoom(null));
      }
    }
    document.documentElement.dataset.drawn = "yes";
  }

  // Every panel shows the same range; from a server its details come, too.
  function zoomed(change) {
    let [first, last] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (first === undefined) return;
    if (view.logX) [first, last] = [10 ** first, 10 ** last];
    zoom([Math.max(0, first), last]);
  }

  function zoom(range) {
    view.range = range;
    element("whole").hidden = range === null;
    drawAll();
    source.refresh(true);
  }

  function controls() {
    const visible = shown();
    for (const input of document.querySelectorAll("#axis input")) {
      input.disabled = visible.length > 0 && !visible.some((run) => run.tables.some((table) => table[input.value]));
      input.checked = input.value === view.axis;
    }
    element("logx").checked = view.logX;
    element("logy").checked = view.logY;
    element("smooth").value = view.smooth;
    const over = Charts.smoothingRecords(view.smooth, visible);
    element("smoothed").textContent = over < 1 ? "off" : `over ${whole(over)} records`;
  }

  // ------------------------------------------------------------------------------------------------ one run in detail

  // The run chosen, or else, for as long as it is there, one that goes on.
  function chooseFocus() {
    const all = [...runs.values()];
    if (runs.has(view.focus)) focused = view.focus;
    if (runs.has(focused) || !all.length) return;
    const running = all.find((run) => stateNow(run.status) === "running");
    focused = (running || all.find((run) => run.phase === "pretraining") || all[0]).name;
  }

  function drawDetails() {
    const all = [...runs.values()];
    element("details").hidden = all.length === 0;
    if (!all.length) return;
    const names = all.map((run) => run.name);
    options(element("focus"), names, focused);
    const run = runs.get(focused),
      mixture = Charts.mixture(run);
    element("mixture").hidden = mixture.curves.length === 0;
    if (mixture.curves.length) fill(placeOf(mixture, element("mixture")), [run]);
    Details.events(run);
    Details.samples(run, view.prompt);
    drawSeen();
  }

  function notes() {
    const said = [];
    for (const run of runs.values()) {
      if (run.unreadable)
        said.push(`${run.name}: ${whole(run.unreadable)} lines of metrics.jsonl can't be read and are left out.`);
    }
    const without = shown()
      .filter((run) => run.tables.length && !run.tables.some((table) => table[view.axis]))
      .map((run) => run.name);
    if (without.length) said.push(`Not drawn, for their ${view.axis} are not known: ${without.join(", ")}.`);
    if (shown().some((run) => Object.values(run.curves).some((curve) => curve.low))) {
      said.push("Where a point stands for several records, the line is their mean; the shade spans all of them.");
    }
    element("notes").textContent = said.join(" ");
  }

  function drawAll() {
    chooseFocus();
    drawRuns();
    drawKey();
    controls();
    drawCurves();
    drawDetails();
    notes();
  }

  // ------------------------------------------------------------------------------------------------ data that came

  function take(content) {
    let changed = false;
    const names = new Set(content.runs.map((run) => run.name));
    for (const name of [...runs.keys()]) if (!names.has(name)) changed = runs.delete(name); // gone, or renamed
    for (const fresh of content.runs) {
      const known = runs.get(fresh.name);
      if (!known && !fresh.curves && !fresh.error) continue;
      changed ||= !known || fresh.curves !== undefined || fresh.error !== known.error;
      const index = known ? known.index : freeIndex();
      const values = fresh.error ? { ...UNREADABLE, ...fresh } : { ...known, error: undefined, ...fresh };
      runs.set(fresh.name, { ...values, index, colour: Charts.colour(index) });
    }
    changed ? drawAll() : drawRuns();
    pulse();
  }

  function freeIndex() {
    const used = new Set([...runs.values()].map((run) => run.index));
    let index = 0;
    while (used.has(index)) index++;
    return index;
  }

  function appended() {
    drawAll();
    pulse();
  }

  function pulse() {
    const going = [...runs.values()].filter((run) => stateNow(run.status) === "running").length;
    const running = runs.size ? `${going ? `${going} running` : "none running"} of ${runs.size}` : "";
    element("pulse").textContent = [running, source.words()].filter(Boolean).join(" · ");
  }

  // ------------------------------------------------------------------------------------------------------ what one can set

  function remember(change = {}) {
    Object.assign(view, change);
    const { axis, logX, logY, smooth, theme, focus } = view;
    const kept = { axis, logX, logY, smooth, theme, focus, runsOff: [...off.runs], curvesOff: [...off.curves] };
    try {
      localStorage.setItem(STORE, JSON.stringify(kept));
    } catch {
      // a browser that keeps nothing for pages of this kind
    }
    drawAll();
  }

  function stored() {
    try {
      return JSON.parse(localStorage.getItem(STORE)) || {};
    } catch {
      return {};
    }
  }

  // The one chosen here, or else the system's.
  function colours() {
    const name = view.theme || (dark.matches ? "dark" : "light");
    document.documentElement.dataset.theme = name;
    element("theme").textContent = name === "dark" ? "Light" : "Dark";
    element("theme").setAttribute("aria-label", `switch to ${name === "dark" ? "light" : "dark"} colours`);
    for (const run of runs.values()) run.colour = Charts.colour(run.index);
  }

  function begin() {
    const { runsOff = [], curvesOff = [], ...kept } = stored();
    Object.assign(view, kept);
    runsOff.forEach((name) => off.runs.add(name));
    curvesOff.forEach((key) => off.curves.add(key));
    colours();
    dark.addEventListener("change", () => {
      colours();
      drawAll();
    });
    element("controls").addEventListener("submit", (event) => event.preventDefault());
    element("axis").addEventListener("change", (event) => {
      view.range = null;
      element("whole").hidden = true;
      remember({ axis: event.target.value });
      source.refresh(true);
    });
    element("logx").addEventListener("change", (event) => remember({ logX: event.target.checked }));
    element("logy").addEventListener("change", (event) => remember({ logY: event.target.checked }));
    element("smooth").addEventListener("input", (event) => remember({ smooth: Number(event.target.value) }));
    element("whole").addEventListener("click", () => zoom(null));
    element("focus").addEventListener("change", (event) => remember({ focus: event.target.value }));
    element("prompt").addEventListener("change", (event) => remember({ prompt: event.target.value }));
    element("more").addEventListener("toggle", drawSeen);
    element("theme").addEventListener("click", () => {
      view.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      colours();
      remember();
    });
    addEventListener("load", drawSeen);
    setInterval(() => (drawRuns(), pulse()), 5000);
    source.start();
  }

  begin();
})();

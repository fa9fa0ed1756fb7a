// What a run's figures and texts become on the page: words, elements, a row of the table.
"use strict";

const Words = (() => {
  const element = (id) => document.getElementById(id);

  // All text of a run comes in as text, never as HTML.
  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // ---------------------------------------------------------------------------------------------- numbers as words

  const whole = (value) => Math.round(value).toLocaleString("en");
  const short = (value) =>
    new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(value);

  function duration(seconds) {
    const minutes = Math.round(seconds / 60);
    if (seconds < 90) return `${Math.round(seconds)} s`;
    if (minutes < 120) return `${minutes} min`;
    if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
    return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
  }

  const moment = (seconds) =>
    new Date(seconds * 1000).toLocaleString([], {
      weekday: "short",
      day: "numeric",
      month: "short",
      hour: "2-digit",
      minute: "2-digit",
    });

  function stateNow(status) {
    const silence = Date.now() / 1000 - (status.news || 0);
    return status.state === "running" && silence > status.patience ? "silent" : status.state;
  }

  function stateWords(run) {
    if (run.error) return ["silent", `can't be read: ${run.error}`];
    if (run.read < 1) return ["reading", `reading, ${Math.floor(100 * run.read)} %`];
    const state = stateNow(run.status);
    if (state === "silent") return [state, `no news for ${duration(Date.now() / 1000 - run.status.news)}`];
    if (state === "empty") return [state, "nothing logged yet"];
    return [state, state === "stopped" ? "stopped, saved" : state];
  }

  function timeLeft(run) {
    const { seconds_left: left } = run.status,
      state = stateNow(run.status);
    if (run.error || state === "finished" || state === "empty") return ["", ""];
    if (left === null) return ["unknown", ""];
    return [duration(left), state === "running" ? `until ${moment(run.status.news + left)}` : "of training"];
  }

  // A row of the table of runs; `on`: whether its curves are drawn, `toggle` switches that.
  function runRow(run, on, toggle) {
    const { status, figures } = run,
      [state, words] = stateWords(run),
      [left, until] = timeLeft(run);
    const share = status.last_step ? Math.min(1, (status.step || 0) / status.last_step) : null;
    const tick = make("input", { type: "checkbox", "data-run": run.name, onchange: toggle });
    tick.checked = on;
    const name = make("span", { title: run.name }, run.name);
    const label = make("label", { class: `run ${on ? "" : "off"}` }, tick, make("i"), name);
    label.style.setProperty("--swatch", run.colour);
    const done =
      share === null
        ? null
        : make("progress", { max: 1, value: share, "aria-label": `${run.name}: ${Math.floor(100 * share)} % done` });
    const steps =
      status.step === null ? "" : whole(status.step) + (status.last_step ? ` of ${whole(status.last_step)}` : "");
    const number = (label, text, unit = "", below = "") =>
      make(
        "td",
        { class: "number", "data-label": label },
        text,
        unit && make("em", {}, ` ${unit}`),
        below && make("small", {}, below),
      );
    const from = (key, words) => (typeof figures[key] === "number" ? words(figures[key]) : "");
    const bits = figures.bits_per_byte !== undefined,
      sources = figures.held_out_sources;
    return make(
      "tr",
      {},
      make("td", {}, label, make("small", {}, run.phase)),
      make("td", {}, make("span", { class: `state ${state}` }, words)),
      make("td", {}, done, steps, make("em", {}, share === null ? "" : `  ${Math.floor(100 * share)} %`)),
      make("td", { "data-label": left && "Time left" }, left, make("em", {}, until && `  ${until}`)),
      number(
        "Loss",
        figures.loss === null ? "not finite" : from("loss", (loss) => loss.toFixed(4)),
      ),
      bits
        ? number(
            "Held-out",
            figures.bits_per_byte.toFixed(3),
            "bits/byte",
            sources > 1 ? `mean of ${sources} sources` : "",
          )
        : number(
            "Held-out",
            from("eval_loss", (loss) => loss.toFixed(3)),
            "eval_loss" in figures ? "nats" : "",
          ),
      number("Tokens", from("tokens_seen" in figures ? "tokens_seen" : "num_tokens", short)),
      number("Tokens/s", from("tokens_per_second", whole)),
      number(
        "MFU",
        from("mfu", (mfu) => `${(100 * mfu).toFixed(1)} %`),
      ),
      number(
        "Memory",
        from("memory_gib", (gib) => `${gib.toFixed(1)} GiB`),
      ),
    );
  }

  function list(id, rows) {
    const items = rows.map(([head, content]) => make("li", {}, make("b", {}, head), content));
    const place = element(id),
      text = items.map((item) => item.textContent).join("");
    if (place.textContent !== text) place.replaceChildren(...items);
  }

  function options(select, names, chosen) {
    if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n")) {
      select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    }
    select.value = chosen;
  }

  function replaceKeepingFocus(parent, children) {
    const index = [...parent.children].findIndex((child) => child.contains(document.activeElement));
    parent.replaceChildren(...children);
    if (index >= 0) parent.children[index]?.querySelector("button")?.focus();
  }

  return { element, make, whole, moment, duration, stateNow, runRow, list, options, replaceKeepingFocus };
})();

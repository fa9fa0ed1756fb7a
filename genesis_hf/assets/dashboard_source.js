// Where the page's data come from: a server that reads the runs' files, or what stands inside and beside the page.
"use strict";

const Source = (() => {
  const LIVE_SECONDS = 3;
  const READING_SECONDS = 0.7; // while a long file is read for the first time

  // What stands at an address; null where it can't be had now: the server is away, or a file is half written.
  async function got(address) {
    try {
      const answer = await fetch(address, { cache: "no-store" });
      return answer.ok ? await answer.json() : null;
    } catch (error) {
      if (error instanceof TypeError || error instanceof SyntaxError) return null;
      throw error;
    }
  }

  // page: {runs, by name; view; take(content); pulse()}
  function live(page) {
    let heard = Date.now(),
      lost = false,
      asking = false,
      again = false;

    // Ask for what is new; `everything`: for another range or axis, whatever is known.
    async function refresh(everything = false) {
      if (asking) {
        again ||= everything;
        return;
      }
      asking = true;
      const content = await got(`data.json?${query(everything)}`);
      asking = false;
      lost = content === null;
      if (lost) page.pulse();
      else heard = Date.now();
      if (content && !again) page.take(content);
      if (again) {
        again = false;
        refresh(true);
      }
    }

    function query(everything) {
      const known = everything ? {} : Object.fromEntries([...page.runs.values()].map((run) => [run.name, run.version]));
      const asked = new URLSearchParams({ known: JSON.stringify(known), axis: page.view.axis });
      if (page.view.range) {
        asked.set("from", page.view.range[0]);
        asked.set("to", page.view.range[1]);
      }
      return asked;
    }

    function later() {
      const reading = [...page.runs.values()].some((run) => run.read < 1);
      setTimeout(
        async () => {
          if (!document.hidden) await refresh();
          later();
        },
        1000 * (reading ? READING_SECONDS : LIVE_SECONDS),
      );
    }

    function start() {
      document.addEventListener("visibilitychange", () => document.hidden || refresh());
      refresh().then(later);
    }

    const words = () =>
      lost ? `the server has not answered for ${Words.duration((Date.now() - heard) / 1000)}` : "live";
    return { start, refresh, words };
  }

  // page: {runs, by name; take(content); appended()}
  function still(embedded, page) {
    let written = embedded.written;

    function start() {
      // Called by the data file that --watch rewrites: a script, for a page opened as a file may load nothing else.
      window.dashboardData = (content) => {
        if (content.written <= written) return;
        written = content.written;
        page.take(content);
      };
      page.take(embedded);
      if (embedded.refresh_seconds) setInterval(reload, 1000 * embedded.refresh_seconds);
      else if (location.protocol.startsWith("http")) [...page.runs.keys()].forEach(follow);
    }

    function reload() {
      const script = Words.make("script", { src: `${embedded.data_file}?${Date.now()}` });
      script.onload = script.onerror = () => script.remove();
      document.head.append(script);
    }

    // The newest record of a run that goes on, behind the curves as they were when the page was written.
    function follow(name) {
      if (!["running", "silent", "stopped"].includes(page.runs.get(name).status.state)) return;
      setTimeout(async () => {
        const run = page.runs.get(name),
          record = await got(run.latest);
        try {
          if (record && record.step > run.status.step) {
            append(run, flat(record));
            written = Date.now() / 1000;
            page.appended();
          }
        } finally {
          follow(name);
        }
      }, 1000 * embedded.latest_seconds);
    }

    return { start, refresh: () => {}, words: () => `as of ${Words.moment(written)}` };
  }

  // Nested values under keys joined with `/`.
  function flat(record, prefix = "", found = {}) {
    for (const [key, value] of Object.entries(record)) {
      if (value && typeof value === "object") flat(value, `${prefix}${key}/`, found);
      else found[prefix + key] = value;
    }
    return found;
  }

  // Add a record to every curve whose table's keys it has.
  function append(run, record) {
    const { status, figures } = run,
      gained = record.step - status.step;
    if (status.seconds_left) status.seconds_left *= Math.max(0, 1 - gained / (status.last_step - status.step));
    run.tables.forEach((table, index) => {
      const curves = Object.entries(run.curves).filter(([, curve]) => curve.table === index);
      if (!curves.every(([key]) => key in record)) return;
      const tokens = record.tokens_seen ?? record.num_tokens,
        speed = record.tokens_per_second;
      const seconds = table.tokens && speed ? (tokens - table.tokens.at(-1)) / speed : 0;
      table.step.push(record.step);
      table.records.push(1);
      table.total++;
      if (table.tokens) table.tokens.push(tokens);
      if (table.hours) table.hours.push(table.hours.at(-1) + seconds / 3600);
      for (const [key, curve] of curves) {
        const value = typeof record[key] === "number" ? record[key] : null; // a loss that is not finite
        for (const kind of ["mean", "low", "high"]) if (curve[kind]) curve[kind].push(value);
      }
    });
    for (const key of Object.keys(figures)) if (key in record) figures[key] = record[key];
    const state = record.step === status.last_step ? "finished" : "running";
    Object.assign(status, { step: record.step, state, news: record.time || Date.now() / 1000 });
  }

  return { live, still };
})();

// One run in detail: what happened in it, and how its model reads from step to step.
"use strict";

const Details = (() => {
  const { element, make, whole, moment, list, options } = Words;

  function events(run) {
    const { shown, counts } = run.events;
    const kinds = Object.entries(counts).map(([kind, count]) => `${kind}: ${whole(count)}`);
    element("counts").textContent = kinds.length ? kinds.join(", ") : "Nothing out of the ordinary so far.";
    list("events", [...shown].reverse().map(eventRow));
    const saved = run.checkpoints;
    let words = saved.map(whole).join(", ");
    if (saved.length > 12) words = `${saved.length}, from step ${whole(saved[0])} to ${whole(saved.at(-1))}`;
    element("kept").textContent = saved.length ? `Checkpoints on disk: ${words}.` : "No checkpoint on disk.";
  }

  function eventRow(event) {
    const kind = make("span", { class: `kind ${Charts.eventClass(event.kind)}` }, event.kind);
    const when = event.time && new Date(event.time * 1000).toISOString();
    const time = when ? make("time", { datetime: when }, moment(event.time)) : null;
    return [`step ${whole(event.step)}`, make("p", {}, kind, event.text, time)];
  }

  function samples(run, chosen) {
    const { prompts, steps, texts, all_steps: all } = run.samples;
    element("sampled").hidden = prompts.length === 0;
    if (!prompts.length) return;
    const labels = prompts.map((prompt, index) => `${index + 1}. ${prompt.replace(/\s+/g, " ").slice(0, 80)}`);
    const index = Math.max(0, labels.indexOf(chosen));
    options(element("prompt"), labels, labels[index]);
    element("asked").textContent = prompts[index];
    const text = (at) => make("p", {}, texts[index][at] || make("em", {}, "nothing"));
    const asked = [...steps.keys()].filter((at) => texts[index][at] !== null);
    list(
      "samples",
      asked.map((at) => [`step ${whole(steps[at])}`, text(at)]),
    );
    element("thinned").textContent = all > steps.length ? `${steps.length} of ${whole(all)} steps, evenly spread.` : "";
  }

  return { events, samples };
})();

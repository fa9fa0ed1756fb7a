"""The plan as a page: for the terminal, Markdown, HTML, JSON."""

import html
import json
from dataclasses import dataclass, field
from pathlib import Path

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.planning.costs import Costs
from genesis_hf.planning.devices import CPU
from genesis_hf.planning.memory import GIB
from genesis_hf.planning.planner import CHINCHILLA, Plan
from genesis_hf.planning.speed import OFFLOADED
from genesis_hf.planning.variants import Variant


@dataclass(frozen=True)
class Section:
    """A table under a title, or lines."""

    title: str
    header: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def sections(plan: Plan) -> list[Section]:
    """What the page says, in the reader's order."""
    return [summary(plan), memory_section(plan), variants_section(plan), speed_section(plan), costs_section(plan.costs)]


# ---------------------------------------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------------------------------------


def summary(plan: Plan) -> Section:
    recipe, shared, steps = plan.recipe, plan.topology, plan.recipe.last_step
    count = f"{shared.processes} x " if shared.processes > 1 else ""
    rows = [
        ("devices", f"{count}{plan.card.name}, {plan.card.memory_gib:.0f} GiB each; {shared.name} ({shared.said_by})"),
        ("parameters", f"{plan.counted.parameters:,}"),
        ("FLOPs a token", f"{plan.speed.flops_per_token:.3g} forward and backward"),
        (
            "tokens a step",
            f"{plan.tokens_per_step:,} ({recipe.per_device_train_batch_size} rows x {plan.accumulation} micro-batches "
            f"x {shared.processes} processes x {recipe.sequence_length} tokens)",
        ),
        ("tokens in all", f"{plan.total_tokens:,} ({steps:,} steps)"),
        (
            "Chinchilla",
            f"{plan.chinchilla:.2f} x ({plan.total_tokens / plan.counted.parameters:.1f} tokens a parameter; "
            f"{CHINCHILLA} are best for a given compute, Hoffmann et al. 2022)",
        ),
        ("compute", "bfloat16 over float32 weights" if plan.bf16 else "float32"),
    ]
    return Section("The run", rows=rows, lines=[f"note: {note}" for note in plan.notes])


def memory_section(plan: Plan) -> Section:
    held, total = plan.memory, plan.card.memory_gib * GIB
    rows = [(name, gib(size), f"{size / held.total:.0%}") for name, size in held.parts.items() if size]
    rows.append(("in all", gib(held.total), f"{held.total / total:.0%} of {gib(total)} GiB"))
    words = {"yes": "fits", "tight": "fits, but tightly", "no": "does NOT fit"}[plan.fits]
    lines = [f"fullest at: {held.moment}"]
    if plan.card.name != CPU:
        lines.append(f"torch will count {gib(held.allocated)} GiB (memory_gib in metrics.jsonl); overhead is assumed")
    lines.append(f"{words}: {gib(abs(total - held.total))} GiB {'left' if held.total <= total else 'too little'}")
    lines += advice(plan)
    return Section("Memory of one device", ("", "GiB", ""), rows, lines)


def advice(plan: Plan) -> list[str]:
    """What to change, as flags."""
    best = plan.best
    if best is None and plan.fits == "no":
        return ["nothing tried makes it fit: a larger card, more cards, a smaller model or shorter rows"]
    if best is None:
        return ["no setting tried is faster and fits"]
    gain = ", speed unknown" if best.relative is None else f", {best.relative - 1:+.0%} speed"
    begin = "cheapest that fits" if plan.fits == "no" else "faster, and fits"
    lines = [f"{begin}: {best.flags}   ({gib(best.total)} GiB{gain})"]
    if best.changes.get("cpu_offload"):
        lines.append(f"slower by an unknown amount: {OFFLOADED}")
    launch = [key for key in ("accelerate_config", "fsdp_reshard_after_forward") if key in best.changes]
    if launch:
        lines.append(f"{' and '.join(launch)}: of the launch, not of the recipe (`accelerate launch --help`)")
    return lines


def variants_section(plan: Plan) -> Section:
    rows = [variant_row(variant) for variant in plan.variants]
    header = ("setting", "GiB", "activations, loss", "fits", "tokens/s", "speed")
    return Section("With one setting changed", header, rows)


def variant_row(variant: Variant) -> tuple[str, ...]:
    flags = variant.flags
    speed = "unknown" if variant.tokens_per_second is None else f"{variant.tokens_per_second:,.0f}"
    share = "unknown" if variant.relative is None else f"{variant.relative:.2f} x"
    fits = "yes" if variant.fits else "no"
    return (flags.replace("--", "") or "as it is", gib(variant.total), gib(variant.activations), fits, speed, share)


def speed_section(plan: Plan) -> Section:
    estimate, exchange = plan.speed, plan.speed.exchange
    rows = []
    if estimate.tokens_per_second is None:
        why = estimate.source.removeprefix("unknown ")
        rows.append(("tokens a second", f"unknown: {why}; scripts/preflight.py measures it"))
    else:
        between = "" if estimate.low is None else f" (between {estimate.low:,.0f} and {estimate.high:,.0f})"
        step = plan.tokens_per_step / estimate.tokens_per_second
        rows.append(("tokens a second", f"{estimate.tokens_per_second:,.0f}{between}; {step:,.1f} s a step"))
        rows.append(("MFU", f"{estimate.mfu:.0%}" + (" as given" if estimate.efficiency is None else "")))
    if estimate.efficiency is not None:
        rows.append(
            ("products", f"{estimate.efficiency:.0%} of {plan.card.bf16_tflops:.0f} TFLOP/s: {estimate.source}")
        )
    if plan.recipe.recompute != "none":
        rows.append(("recomputation", f"{estimate.recomputed:.2f} x the FLOPs ({plan.recipe.recompute})"))
    if exchange.sent:
        seconds = "unknown seconds" if exchange.seconds is None else f"{exchange.seconds:.2f} s"
        rows.append(
            (
                "exchange a step",
                f"{exchange.sent / 1e9:.2f} GB sent by each ({exchange.gathers / 1e9:.2f} weights, "
                f"{exchange.reductions / 1e9:.2f} gradients): {seconds}",
            )
        )
        rate = "" if exchange.gb_s is None else f"{exchange.gb_s:.1f} GB/s, "
        rows.append(("", f"{rate}{exchange.source}"))
        if estimate.exposed is not None:
            hidden = exchange.seconds - estimate.exposed
            rows.append(("", f"{hidden:.2f} s hide behind products, {estimate.exposed:.2f} s don't"))
    return Section("Speed", rows=rows)


def costs_section(found: Costs) -> Section:
    rows = [
        ("time", spread_words(found.days, "days")),
        ("energy", spread_words(found.kwh, "kWh") + ("" if found.kwh is None else ", cards alone at their limit")),
        ("rent", found.rent_source if found.rent is None else f"{spread_words(found.rent, '')}; {found.rent_source}"),
        ("electricity", spread_words(found.electricity, "")),
        ("disk", f"{gib(found.disk)} GiB: {found.checkpoints} checkpoints of {gib(found.checkpoint)} GiB at most"),
        ("computer's memory", f"{gib(found.host)} GiB a machine, page cache apart"),
    ]
    return Section("What it takes", rows=[row for row in rows if row[0] != "electricity" or found.electricity])


def spread_words(values: tuple[float, float, float] | None, unit: str) -> str:
    """Expected, and between what."""
    if values is None:
        return "unknown"
    expected, low, high = (f"{v:,.1f}" if v < 100 else f"{v:,.0f}" for v in values)
    between = "" if low == high else f" (between {low} and {high})"
    return f"{expected} {unit}".rstrip() + between


def gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


# ---------------------------------------------------------------------------------------------------------
# How it looks
# ---------------------------------------------------------------------------------------------------------


def as_text(plan: Plan) -> str:
    """For a terminal of about 120 columns."""
    parts = []
    for section in sections(plan):
        rows = ([section.header] if any(section.header) else []) + section.rows
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [section.title, "-" * len(section.title)]
        for row in rows:
            cells = [
                cell.rjust(width) if section.header and i > 0 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        parts.append("\n".join(lines + [f"  {line}" for line in section.lines]))
    return "\n\n".join(parts)


def as_markdown(plan: Plan) -> str:
    """Tables that GitHub and the Hub draw."""
    parts = [f"# Plan of {plan.recipe.output_dir}"]
    for section in sections(plan):
        columns = len(section.rows[0])
        header = section.header or ("",) * columns
        rows = [header, ("---",) + (("---:",) if section.header else ("---",)) * (columns - 1), *section.rows]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        parts.append(f"## {section.title}\n\n{table}")
        if section.lines:
            parts.append("\n".join(f"- {line}" for line in section.lines))
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #8884; vertical-align: top; }
.numbers td + td, .numbers th + th { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .95em; }
"""


def as_html(plan: Plan) -> str:
    """One page that asks nothing of other hosts."""
    title = html.escape(f"Plan of {plan.recipe.output_dir}")
    parts = []
    for section in sections(plan):
        kind = ' class="numbers"' if section.header else ""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in section.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in section.rows
        )
        lines = "".join(f"<li>{html.escape(line)}</li>\n" for line in section.lines)
        parts.append(
            f"<h2>{html.escape(section.title)}</h2>\n<table{kind}>\n<tr>{head}</tr>\n{body}</table>\n"
            + (f"<ul>\n{lines}</ul>" if lines else "")
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def write_page(plan: Plan, path: str) -> None:
    """The plan as a file, in the form that its name asks for.

    Raises:
        UserError: it can't be written there.
    """
    suffix = Path(path).suffix
    if suffix == ".json":
        text = json.dumps(plan.as_values(), indent=1, ensure_ascii=False) + "\n"
    else:
        text = as_html(plan) if suffix == ".html" else as_markdown(plan)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"output_file {path}: cannot be written ({error.strerror})") from None

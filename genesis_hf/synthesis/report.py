"""Pages about what was made: one file each that asks nothing of the network."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genesis_hf.report.pages import STYLE
from genesis_hf.report.tables import Rows, html_table

# ---------------------------------------------------------------------------------------------------------
# Conversations
# ---------------------------------------------------------------------------------------------------------


def quality_page(figures: dict[str, Any], samples: Sequence[dict[str, Any]]) -> str:
    """The page of `quality.json`, with conversations to read."""
    kept, records = figures["kept"], figures["records"]
    dropped = [["reason", "conversations", "share"]]
    dropped += [[reason, f"{n:,}", percent(n / records)] for reason, n in figures["dropped"].items()]
    parts = [
        f"<p>{kept:,} of {records:,} conversations are kept ({percent(kept / records)}).</p>",
        section("Dropped", html_table(dropped) if len(dropped) > 1 else "<p>None.</p>"),
        *(section(title, share_part(figures, key)) for key, title in SHARE_TITLES.items()),
        section("Coverage", html_table(coverage_rows(figures["coverage"]))),
        section("Diversity", html_table(diversity_rows(figures))),
        section("Openings of answers", html_table(opening_rows(figures["openings"]))),
        section("Words an answer", histogram({"answers": figures["lengths"].get("histogram")}, "words")),
        section("Models", html_table(model_rows(figures["models"]))),
        section(f"{len(samples)} conversations drawn at random", "".join(map(conversation, samples))),
    ]
    return page("Conversations", parts)


SHARE_TITLES = {"category": "Categories", "language": "Languages", "turns": "Questions a conversation"}


def share_part(figures: dict[str, Any], key: str) -> str:
    """Asked and realised shares, drawn and as a table."""
    table, total = figures["shares"][key], figures["kept"]
    rows = [[key, "asked", "kept", "conversations written", "conversations kept"]]
    for name, row in table.items():
        share = percent(row["kept"] / total) if total else "unknown"
        rows.append([name, percent(row["asked"]), share, f"{row['written']:,}", f"{row['kept']:,}"])
    if not total:
        return html_table(rows)
    values = {
        "asked": [row["asked"] for row in table.values()],
        "kept": [row["kept"] / total for row in table.values()],
    }
    return bars(list(table), values) + html_table(rows)


def coverage_rows(coverage: dict[str, Any]) -> Rows:
    rows = [["", "asked", "found", "missing"]]
    for key in ("topics", "personas"):
        missing = ", ".join(coverage[key].get("missing", []))
        rows.append([key, f"{coverage[key]['asked']:,}", f"{coverage[key]['found']:,}", missing])
    rows.append(["category × topic × persona", "", f"{coverage['combinations']:,}", ""])
    rows.append(["conversations of the most frequent one", "", f"{coverage['most_of_one_combination']:,}", ""])
    return rows


def diversity_rows(figures: dict[str, Any]) -> Rows:
    distinct, openings = figures["distinct"], figures["openings"]
    sampled = f"answers of {distinct['conversations']:,} conversations, {distinct['words']:,} words"
    rows = [["figure", "value", "over"]]
    rows += [[f"distinct {n}-grams of words", share(distinct[f"distinct_{n}"]), sampled] for n in (1, 2, 3)]
    rows.append(["distinct openings", f"{openings['distinct']:,}", f"{openings['answers']:,} answers"])
    rows.append(["answers with the most common opening", share(openings["most_common_share"]), "all answers"])
    return rows


def opening_rows(openings: dict[str, Any]) -> Rows:
    return [["first words", "answers"], *([row["words"], f"{row['answers']:,}"] for row in openings["most_common"])]


def model_rows(models: Sequence[dict[str, Any]]) -> Rows:
    return [
        ["provider", "model", "conversations"],
        *([row["provider"], row["model"], f"{row['conversations']:,}"] for row in models),
    ]


def conversation(record: dict[str, Any]) -> str:
    """A conversation to read, with what was asked for above it."""
    keys = ("category", "topic", "persona", "language")
    head = ", ".join(str(record[key]) for key in keys if record.get(key))
    turns = "".join(turn(message["role"], message["content"]) for message in record["messages"])
    return f"<blockquote><p><i>{record['index']}: {html.escape(head)}</i></p>{turns}</blockquote>"


# ---------------------------------------------------------------------------------------------------------
# Preferences
# ---------------------------------------------------------------------------------------------------------


def preferences_page(figures: dict[str, Any], samples: Sequence[dict[str, Any]]) -> str:
    """The page of `preferences.json`, with pairs to read."""
    histograms = figures["histograms"]
    parts = [
        f"<p>{figures['words']}</p>",
        section("From prompts to pairs", html_table(outcome_rows(figures))),
        section("Length", html_table(length_rows(figures["splits"])) + histogram(histograms["words"], "words")),
        section("Margins", histogram({"pairs": histograms["margins"]}, "score of chosen minus rejected")),
        section("Style", html_table(style_rows(figures["style"]))),
    ]
    if figures["judge"]:
        parts.append(section("The judge against itself", html_table(judge_rows(figures["judge"]))))
    parts.append(section(f"{len(samples)} pairs drawn at random", "".join(map(pair, samples))))
    return page("Preferences", parts)


def outcome_rows(figures: dict[str, Any]) -> Rows:
    return [["what came of it", "prompts"], *([name, f"{count:,}"] for name, count in figures["outcomes"].items())]


def length_rows(splits: Mapping[str, dict[str, Any]]) -> Rows:
    rows = [["", "pairs", "mean", "chosen", "rejected", "difference", "within the tolerance"]]
    for name, split in splits.items():
        for when in ("before", "after"):
            met = "yes" if split[when]["balanced"] else "no"
            for unit, figures in split[when]["lengths"].items():
                means = [f"{figures[side]:.2f}" for side in ("chosen", "rejected")]
                apart = f"{100 * figures['difference']:+.1f} %"
                rows.append([f"{name}, {when} balancing", f"{split[when]['pairs']:,}", unit, *means, apart, met])
    return rows


def style_rows(style: Mapping[str, Mapping[str, float | None]]) -> Rows:
    rows = [["mean of", "chosen", "rejected"]]
    for name, sides in style.items():
        rows.append([name, *("unknown" if sides[s] is None else f"{sides[s]:.3f}" for s in ("chosen", "rejected"))])
    return rows


def judge_rows(judge: dict[str, Any]) -> Rows:
    agreement = "unknown"
    if judge["agreement"] is not None:
        error = f" ± {100 * judge['stderr']:.1f}" if judge["stderr"] is not None else ""
        agreement = f"{100 * judge['agreement']:.1f}{error} %"
    return [
        ["", ""],
        ["two answers ranked alike in both orders (± one standard error)", agreement],
        ["of so many prompts", f"{judge['prompts']:,}"],
        ["best and worst swap with the order", f"{judge['flipped']:,}"],
        ["no verdict that can be read", f"{judge['unknown']:,}"],
    ]


def pair(row: dict[str, Any]) -> str:
    """A pair to read, with its scores and the judge's reasons."""
    parts = [turn(message["role"], message["content"]) for message in row["prompt"]]
    for side in ("chosen", "rejected"):
        parts.append(turn(f"{side} ({row[f'score_{side}']:.2f})", row[side][0]["content"]))
        parts += [turn("why", reason) for reason in row["reasons"].get(side, [])]
    return f"<blockquote>{''.join(parts)}</blockquote>"


# ---------------------------------------------------------------------------------------------------------
# HTML and pictures
# ---------------------------------------------------------------------------------------------------------


def page(title: str, parts: Sequence[str]) -> str:
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE} p span {{ white-space: pre-wrap }}</style></head><body>\n"
        f"<h1>{title}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>{body}"


def turn(name: str, text: str) -> str:
    return f"<p><b>{html.escape(name)}</b> <span>{html.escape(text)}</span></p>"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def share(value: float | None) -> str:
    return "unknown" if value is None else percent(value)


def bars(names: Sequence[str], values: Mapping[str, Sequence[float]]) -> str:
    """Shares of several series side by side, as inline SVG."""

    def draw(axis: Any) -> None:
        height = 0.8 / len(values)
        for number, (series, shares) in enumerate(values.items()):
            places = [place + (number - (len(values) - 1) / 2) * height for place in range(len(names))]
            axis.barh(places, [100 * share for share in shares], height=height, label=series)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("%")
        axis.legend()

    return picture(draw, height=1.2 + 0.4 * len(names))


def histogram(series: Mapping[str, Mapping[str, Sequence[float]] | None], label: str) -> str:
    """`counts` and `edges` of each series as steps, as inline SVG; nothing where there are none."""
    series = {name: values for name, values in series.items() if values}

    def draw(axis: Any) -> None:
        for name, values in series.items():
            axis.stairs(values["counts"], values["edges"], label=name, fill=len(series) == 1, alpha=0.8)
        axis.set_xlabel(label)
        axis.legend()

    return picture(draw) if series else ""


def picture(draw: Callable[[Any], None], height: float = 3.0) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    axis = figure.subplots()
    draw(axis)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "genesis_hf"}):  # ids that don't change from run to run
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)

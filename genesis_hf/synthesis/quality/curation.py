"""Records → conversations kept, those dropped with their reasons, figures, a report and a data card."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genesis_hf.config import recipe_dict, write_text
from genesis_hf.errors import UserError
from genesis_hf.style.text import visible
from genesis_hf.synthesis.constitution import Category, Constitution, constitution_sha256
from genesis_hf.synthesis.data_card import conversations_card
from genesis_hf.synthesis.quality.contamination import EvaluationItems
from genesis_hf.synthesis.quality.diversity import Diversity, answers_of
from genesis_hf.synthesis.quality.duplicates import Duplicates, compared_turns
from genesis_hf.synthesis.quality.faults import Reason, fault_of
from genesis_hf.synthesis.quality.languages import compare_language
from genesis_hf.synthesis.quality.lines import NumberedLines, write_line, written_beside
from genesis_hf.synthesis.recipe import QualitySettings
from genesis_hf.synthesis.report import quality_page
from genesis_hf.version import __version__

SAMPLE_SEED = 42
"""Of the conversations shown in the report."""


def curate(records: Path, output_dir: Path, constitution: Constitution, settings: QualitySettings) -> dict[str, Any]:
    """Write what is kept of the records, and what can be said about it.

    In `output_dir`: `conversations.jsonl` (records kept, by their number, unchanged), `dropped.jsonl` (`index`,
    `reason`, `details`), `quality.json` (the figures returned), `report.html`, `README.md` (a data card). Each is
    replaced as a whole. Memory: a signature of each conversation kept and a sample of the texts.

    Raises:
        UserError: the records can't be read, or there are none; an evaluation set that can't be read.
    """
    filters = Filters(constitution, settings)
    written, kept = Diversity(SAMPLE_SEED), Diversity(SAMPLE_SEED)
    reasons: Counter[str] = Counter()
    models: Counter[tuple[str, str]] = Counter()
    conversations, dropped = output_dir / "conversations.jsonl", output_dir / "dropped.jsonl"
    with NumberedLines(records) as lines, written_beside(conversations) as good, written_beside(dropped) as bad:
        if not len(lines):
            raise UserError(f"{records}: not one record; scripts/synthesize.py writes them")
        duplicates = Duplicates(settings.near_duplicates, lambda number: compared_turns(lines.read(number)["messages"]))
        for record in tqdm(lines, desc="curating", unit="record", total=len(lines), disable=None):
            written.add(record)
            reason = filters.reason(record) or repeated(record, duplicates)
            if reason is not None:
                kind, details = reason
                reasons[kind] += 1
                write_line(bad, {"index": record["index"], "reason": kind, "details": details})
                continue
            kept.add(record)
            models[record.get("provider", "unknown"), record.get("model", "unknown")] += 1
            write_line(good, record)
    figures = {
        "records": len(lines),
        "kept": len(lines) - reasons.total(),
        "dropped": dict(reasons.most_common()),
        "language_verdicts": dict(filters.languages),
        "evaluation_items": len(filters.items.places),
        "shares": shares(constitution, written, kept),
        **kept.figures(constitution),
        "models": [{"provider": p, "model": m, "conversations": count} for (p, m), count in models.most_common()],
        "settings": {key: recipe_dict(settings)[key] for key in QualitySettings.__dataclass_fields__},
        "constitution_sha256": constitution_sha256(constitution),
        "genesis_hf": __version__,
    }
    write_text(output_dir / "quality.json", json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    write_text(output_dir / "report.html", quality_page(figures, kept.sample()))
    write_text(output_dir / "README.md", conversations_card(output_dir.name, constitution, figures))
    return figures


class Filters:
    """What a conversation has to be, whatever the others are.

    Attributes:
        languages: how many conversations each verdict about their language was passed on.
    """

    def __init__(self, constitution: Constitution, settings: QualitySettings) -> None:
        """
        Raises:
            UserError: an evaluation set that can't be read.
        """
        self.categories: dict[str, Category] = {category.name: category for category in constitution.categories}
        self.settings = settings
        self.items = EvaluationItems(settings.evaluation_sets)
        self.languages: Counter[str] = Counter()

    def reason(self, record: dict[str, Any]) -> Reason | None:
        """Why a record is dropped; None: it isn't."""
        category = self.categories.get(record.get("category"))
        return (
            fault_of(record["messages"], category, self.settings)
            or self.language_reason("\n".join(map(visible, answers_of(record))), record.get("language") or "en")
            or self.contamination([message["content"] for message in record["messages"]])
        )

    def language_reason(self, text: str, asked: str) -> Reason | None:
        """A reason where a text is surely in another language than was asked for."""
        if not self.settings.check_language:
            return None
        verdict, found = compare_language(text, asked)
        self.languages[verdict] += 1
        return ("language", f"{found}, not {asked}") if verdict == "other" else None

    def contamination(self, texts: Sequence[str]) -> Reason | None:
        """A reason where an item of an evaluation set stands in the texts."""
        found = self.items.find(texts)
        return found and ("contaminated", f"{found[0]}: {found[1]}")


def repeated(record: dict[str, Any], duplicates: Duplicates) -> Reason | None:
    """A reason where the conversation came before; else it counts as having come from now on."""
    found = duplicates.find_or_add(record["index"], compared_turns(record["messages"]))
    if found is None:
        return None
    earlier, similarity = found
    kind = "duplicate" if similarity == 1 else "near duplicate"
    return kind, f"of {earlier}, similarity {similarity:.2f}"


def shares(constitution: Constitution, written: Diversity, kept: Diversity) -> dict[str, Any]:
    """For each category, language and number of turns: the share asked for, and conversations written and kept."""
    wanted: dict[str, dict[Any, float]] = {
        "category": {category.name: category.share for category in constitution.categories},
        "language": constitution.languages,
        "turns": constitution.turns,
    }
    for key, asked in wanted.items():
        wanted[key] = {name: asked.get(name, 0.0) for name in [*asked, *written.counts[key]]}
    wanted["thinking"] = {category.name: category.thinking for category in constitution.categories}
    return {
        key: {
            str(name): {"asked": value, "written": written.counts[key][name], "kept": kept.counts[key][name]}
            for name, value in asked.items()
        }
        for key, asked in wanted.items()
    }

"""Pairs as files: rows with their audit trail, figures, page and card; and derived again."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from genesis_hf.config import recipe_dict, recipe_yaml, write_text
from genesis_hf.errors import UserError
from genesis_hf.files import hash_items
from genesis_hf.style.measures import FIGURES
from genesis_hf.synthesis.budget import Budget
from genesis_hf.synthesis.candidates import Prompt, describe_provider, make_prompts
from genesis_hf.synthesis.constitution import Constitution, constitution_sha256, load_constitution
from genesis_hf.synthesis.data_card import preferences_card
from genesis_hf.synthesis.pairs import FAILED, FLIPPED, JUDGE, UNKNOWN, Pair, balance, describe_balance, differences
from genesis_hf.synthesis.prompts import seed_of
from genesis_hf.synthesis.quality.curation import Filters
from genesis_hf.synthesis.quality.diversity import describe_lengths
from genesis_hf.synthesis.quality.languages import language_of
from genesis_hf.synthesis.quality.lines import write_line, written_beside
from genesis_hf.synthesis.recipe import PreferencesRecipe, QualitySettings
from genesis_hf.synthesis.records import read_lines
from genesis_hf.synthesis.report import preferences_page
from genesis_hf.synthesis.scoring import Item, measured_style
from genesis_hf.uncertainty import standard_error
from genesis_hf.version import __version__

FILES = {"train": "preferences.jsonl", "test": "preferences_held_out.jsonl"}
SHOWN = 20
"""Pairs of the report, drawn with the seed."""


def write_preferences(
    recipe: PreferencesRecipe,
    constitution: Constitution,
    filters: Filters,
    items: Sequence[Item],
    spent: Budget | None,
) -> dict[str, Any]:
    """Balance each split, write the pairs, the figures, the page and the card."""
    folder = Path(recipe.output_dir)
    sha256 = constitution_sha256(constitution)
    providers = {place: describe_provider(settings) for place, settings in enumerate(recipe.candidates)}
    if recipe.judge is not None:
        providers[JUDGE] = describe_provider(recipe.judge)
    judge_model = recipe.judge.model if recipe.judge else None
    splits, rows, picked = {}, {}, []
    for split, file in FILES.items():
        mine = [item for item in items if not item.outcome and split_of(recipe, item.prompt) == split]
        kept = balance([item.options for item in mine], recipe.length_tolerance, recipe.max_length_drop)
        for item, pair in zip(mine, kept, strict=True):
            item.outcome = "dropped for the balance of lengths" if pair is None else f"a pair ({split})"
        chosen = [(item, pair) for item, pair in zip(mine, kept, strict=True) if pair is not None]
        splits[split] = {
            "before": describe_balance([item.options[0] for item in mine], recipe.length_tolerance),
            "after": describe_balance([pair for _, pair in chosen], recipe.length_tolerance),
        }
        rows[file] = [row_of(item, pair, sha256, providers, judge_model) for item, pair in chosen]
        picked += chosen
    figures = {
        "prompts": len(items),
        "pairs": len(picked),
        "failed": sum(item.outcome == FAILED for item in items),
        "outcomes": dict(Counter(item.outcome for item in items).most_common()),
        "splits": splits,
        "style": describe_style(picked),
        "judge": describe_judge(items) if recipe.judge else None,
        "histograms": histograms(picked),
        "languages": sorted({language_of(i.prompt.messages[-1]["content"]) or "" for i, _ in picked} - {""}),
        "models": describe_models(providers, picked),
        "evaluation_items": len(filters.items.places),
        "tokens": spent.tokens if spent else 0,
        "cost": spent.cost if spent and spent.prices_known else None,
        "settings": {key: recipe_dict(recipe)[key] for key in QualitySettings.__dataclass_fields__},
        "constitution_sha256": sha256,
        "genesis_hf": __version__,
    }
    figures["words"] = in_words(recipe, figures)
    for file, lines in rows.items():
        with written_beside(folder / file) as opened:
            for line in lines:
                write_line(opened, line)
    write_text(folder / "preferences.json", json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "recipe.yaml", recipe_yaml(recipe))
    drawn = sorted(chain(*rows.values()), key=lambda row: seed_of(recipe.seed, "shown", row["audit"]["number"]))
    write_text(folder / "report.html", preferences_page(figures, drawn[:SHOWN]))
    write_text(folder / "README.md", preferences_card(folder.resolve().name, figures))
    return figures


def split_of(recipe: PreferencesRecipe, prompt: Prompt) -> str:
    """`test` for the share of the prompts that is held out, by their text; else `train`."""
    return "test" if seed_of(recipe.seed, "held out", prompt.messages) < recipe.held_out_share * 2**31 else "train"


def row_of(
    item: Item, pair: Pair, sha256: str, providers: Mapping[int, dict[str, Any]], judge_model: str | None
) -> dict[str, Any]:
    """A pair as scripts/dpo.py reads it, with all that says where it comes from."""
    row: dict[str, Any] = {"prompt": item.prompt.messages}
    places = {"chosen": pair.chosen, "rejected": pair.rejected}
    judgement = item.judgement
    row |= {side: [{"role": "assistant", "content": item.candidates[p].answer}] for side, p in places.items()}
    row |= {f"score_{side}": float(item.scores[place]) for side, place in places.items()}
    row["reasons"] = {side: judgement.reasons[place] if judgement else [] for side, place in places.items()}
    row["audit"] = {**item.prompt.audit(), "constitution_sha256": sha256, "genesis_hf": __version__}
    for side, place in places.items():
        candidate = item.candidates[place]
        row["audit"][side] = {
            "provider": providers[candidate.provider],
            "bland": candidate.provider == JUDGE,
            "candidate": candidate.number,
            "tokens": candidate.tokens,
            "stopped": candidate.stopped,
            "sha256": hash_items([candidate.answer]),
            "judge_scores": judgement.scores[:, place].tolist() if judgement else [],
        }
    row["audit"]["judge"] = judge_model
    return row


def describe_style(picked: Sequence[tuple[Item, Pair]]) -> dict[str, dict[str, float | None]]:
    """Mean of each style measure over chosen and over rejected answers."""
    sides = {
        "chosen": measured_style([item.candidates[pair.chosen] for item, pair in picked]),
        "rejected": measured_style([item.candidates[pair.rejected] for item, pair in picked]),
    }
    return {f.name: {side: measured[f.name]["value"] for side, measured in sides.items()} for f in FIGURES}


def describe_judge(items: Sequence[Item]) -> dict[str, Any]:
    """How often a judge agrees with itself when the order is turned round, with the standard error over prompts."""
    agreement = np.array([item.judgement.agreement() for item in items if item.judgement is not None])
    outcomes = Counter(item.outcome for item in items)
    return {
        "prompts": len(agreement),
        "agreement": float(agreement.mean()) if len(agreement) else None,
        "stderr": standard_error(agreement),
        "flipped": outcomes[FLIPPED],
        "unknown": outcomes[UNKNOWN],
    }


def histograms(picked: Sequence[tuple[Item, Pair]]) -> dict[str, Any]:
    """Words of both sides, and margins."""
    sides = {
        "chosen": [pair.chosen_lengths[0] for _, pair in picked],
        "rejected": [pair.rejected_lengths[0] for _, pair in picked],
    }
    counts, edges = np.histogram(np.round([pair.margin for _, pair in picked], 9), bins=20)
    margins = {"counts": counts.tolist(), "edges": edges.tolist()} if picked else None
    return {"words": {s: describe_lengths(v).get("histogram") for s, v in sides.items()}, "margins": margins}


def describe_models(providers: Mapping[int, dict[str, Any]], picked: Sequence[tuple[Item, Pair]]) -> list[dict]:
    """Who wrote how many of the answers in the pairs."""
    wrote = Counter(item.candidates[place].provider for item, pair in picked for place in (pair.chosen, pair.rejected))
    return [
        {"provider": providers[place]["kind"], "model": providers[place]["model"], "answers": count}
        for place, count in sorted(wrote.items())
    ]


def in_words(recipe: PreferencesRecipe, figures: dict[str, Any]) -> str:
    """How the pairs came about, in a few sentences."""
    source = f"of {Path(recipe.prompts).name}" if recipe.prompts else "drawn from the constitution"
    weights = ", ".join(f"{name} × {weight:g}" for name, weight in recipe.style.items())
    by = (
        [f"by {recipe.judge.model} under the constitution's principles, in two opposite orders"] if recipe.judge else []
    )
    by += [f"by measured style ({weights}, in standard deviations)"] if weights else []
    rejected = "the chosen one rewritten blandly" if recipe.rejected == "bland" else "a worse one"
    said = [
        f"{figures['prompts']:,} prompts {source}; {recipe.num_candidates} answers to each by "
        f"{' and '.join(settings.model for settings in recipe.candidates)}, scored {' and '.join(by)}; "
        f"rejected is {rejected}. {figures['pairs']:,} pairs came of it."
    ]
    for split, name in (("train", "training"), ("test", "held-out")):
        after = figures["splits"][split]["after"]
        if after["pairs"] and not after["balanced"]:
            said.append(
                f"Lengths are not balanced in the {name} pairs: chosen against rejected, {differences(after)}; "
                f"length_tolerance is {100 * recipe.length_tolerance:g} %."
            )
    return " ".join(said)


# ---------------------------------------------------------------------------------------------------------
# Again
# ---------------------------------------------------------------------------------------------------------


def verify_preferences(recipe: PreferencesRecipe) -> tuple[int, list[str]]:
    """Derive the prompts of the pairs again, and hash their answers; how many agree, and what is wrong with the others.

    Raises:
        UserError: there are no pairs yet.
    """
    constitution = load_constitution(recipe.constitution)
    sha256 = constitution_sha256(constitution)
    prompts = make_prompts(recipe, constitution)
    agree, wrong = 0, []
    for file in FILES.values():
        path = Path(recipe.output_dir) / file
        if not path.exists():
            raise UserError(f"{path}: no such file; the same command without --verify writes it")
        for line, row in enumerate(read_lines(path), 1):
            if reason := difference(row, prompts, sha256):
                wrong.append(f"{path}, line {line}: {reason}")
            else:
                agree += 1
    return agree, wrong


def difference(row: dict[str, Any], prompts: Sequence[Prompt], sha256: str) -> str | None:
    """What of a row isn't what it should be; None: nothing."""
    audit = row.get("audit") or {}
    number = audit.get("number")
    if type(number) is not int or not 0 <= number < len(prompts):
        return f"there is no prompt number {number}"
    if audit.get("constitution_sha256") != sha256:
        return "made with another constitution"
    if row["prompt"] != prompts[number].messages or {**audit, **prompts[number].audit()} != audit:
        return f"prompt {number} is another one"
    for side in ("chosen", "rejected"):
        if hash_items([row[side][0]["content"]]) != audit[side]["sha256"]:
            return f"the {side} answer has another hash"
    return None

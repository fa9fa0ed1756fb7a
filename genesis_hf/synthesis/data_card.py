"""README.md of a folder of conversations or preferences, as the Hub reads it."""

from typing import Any

from huggingface_hub import DatasetCardData

from genesis_hf.synthesis.constitution import Constitution

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def conversations_card(name: str, constitution: Constitution, figures: dict[str, Any]) -> str:
    """The card of what `curate` keeps."""
    kept = figures["kept"]
    data_files = [{"split": "train", "path": "conversations.jsonl"}]
    languages = [code for code, row in figures["shares"]["language"].items() if row["kept"]]
    return "\n".join(
        [
            front_matter(name, figures, kept, languages, "text-generation", data_files),
            f"# {name}\n",
            f"{kept:,} conversations written by a chat model and held to a constitution; a row is a line of "
            "`conversations.jsonl` with `messages` and its audit trail (prompt seed, provider, model, settings, "
            "principles, revisions, hashes).\n",
            "## How it was made\n",
            f"First questions come from {len(constitution.categories)} categories of templates, "
            f"{figures['coverage']['topics']['asked']:,} topics (counted in each category) and "
            f"{len(constitution.personas):,} personas, drawn with a seed; the answers were asked for under the "
            "constitution's principles "
            f"({', '.join(principle.name for principle in constitution.principles)}).\n",
            constitution_line(figures),
            models_table(figures["models"], "conversations"),
            shares_table(figures),
            filters_text(figures),
            limits_text(),
        ]
    )


def preferences_card(name: str, figures: dict[str, Any]) -> str:
    """The card of the pairs that scripts/build_preferences.py writes."""
    splits = {"train": "preferences.jsonl", "test": "preferences_held_out.jsonl"}
    data_files = [
        {"split": split, "path": path} for split, path in splits.items() if figures["splits"][split]["after"]["pairs"]
    ]
    return "\n".join(
        [
            front_matter(name, figures, figures["pairs"], figures["languages"], "reinforcement-learning", data_files),
            f"# {name}\n",
            f"{figures['pairs']:,} preference pairs. A row has `prompt`, `chosen`, `rejected`, both scores, the "
            "judge's reasons where a model judged, and an audit trail.\n",
            "## How it was made\n",
            figures["words"] + "\n",
            constitution_line(figures),
            models_table(figures["models"], "answers"),
            "| what came of it | prompts |\n|---|---|\n"
            + "".join(f"| {outcome} | {count:,} |\n" for outcome, count in figures["outcomes"].items()),
            filters_text(figures),
            limits_text(),
        ]
    )


def front_matter(
    name: str, figures: dict[str, Any], rows: int, languages: list[str], task: str, data_files: list[dict[str, str]]
) -> str:
    """The YAML block that the Hub reads. A licence that nobody named is left out, and the text says so."""
    data = DatasetCardData(
        pretty_name=name,
        language=languages or None,
        license=figures["settings"]["license"],
        task_categories=[task],
        size_categories=[next((size for limit, size in SIZES if rows < limit), "n>1M")],
        tags=["synthetic", "constitution", "genesis_hf"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def constitution_line(figures: dict[str, Any]) -> str:
    return f"sha256 of the constitution: `{figures['constitution_sha256']}`. genesis_hf {figures['genesis_hf']}.\n"


def models_table(models: list[dict[str, Any]], noun: str) -> str:
    rows = "".join(f"| {row['provider']} | {row['model']} | {row[noun]:,} |\n" for row in models)
    return f"| provider | model | {noun} |\n|---|---|---|\n{rows}"


def shares_table(figures: dict[str, Any]) -> str:
    """Asked and realised shares."""
    lines = ["| | | asked | kept |", "|---|---|---|---|"]
    for key, table in figures["shares"].items():
        for name, row in table.items():
            base = figures["shares"]["category"][name]["kept"] if key == "thinking" else figures["kept"]
            realised = f"{100 * row['kept'] / base:.1f} %" if base else "unknown"
            lines.append(f"| {key} | {name} | {100 * row['asked']:.1f} % | {realised} |")
    return "\n".join(lines) + "\n"


def filters_text(figures: dict[str, Any]) -> str:
    """What was looked for, and how much of it was found."""
    settings = figures["settings"]
    looked = [
        f"exact copies, and near ones from a Jaccard similarity of {settings['near_duplicates']} of word 5-grams on",
        f"answers of whose word 4-grams more than {100 * settings['max_answer_repetition']:.0f} % are repeats",
    ]
    looked += ["refusals (English), outside categories that allow them"] if settings["drop_refusals"] else []
    looked += ["boilerplate (English)"] if settings["drop_boilerplate"] else []
    looked += ["answers surely in another language than was asked for"] if settings["check_language"] else []
    looked += [f"13-grams of {figures['evaluation_items']:,} evaluation items"] if figures["evaluation_items"] else []
    found = "".join(f"| {kind} | {count:,} |\n" for kind, count in figures.get("dropped", {}).items())
    table = f"\n| dropped | count |\n|---|---|\n{found}" if found else ""
    missed = "" if figures["evaluation_items"] else "\nEvaluation sets were not looked for.\n"
    return "## Filters\n\nLooked for: " + "; ".join(looked) + ".\n" + table + missed


def limits_text() -> str:
    return (
        "## Limits\n\n"
        "The answers are a model's: nobody checked what they claim. The licence terms of what its provider's models "
        "write are theirs to state; where the block above names no licence, it is unknown. Lists of refusals and "
        "boilerplate are English. Personal or harmful content was not looked for.\n"
    )

"""The demo's data folder: pretraining text, conversations, preferences, prompts, lm-eval tasks, a summary."""

import json
import lzma
import platform
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genesis_hf.config import DemoCorpusRecipe, recipe_yaml, write_text
from genesis_hf.demo.conversations import (
    Fact,
    Message,
    find_facts,
    is_hedged,
    make_conversations,
    make_prompts,
)
from genesis_hf.demo.corpus import (
    Document,
    UserText,
    code_documents,
    digest,
    divide,
    held_out_files,
    prose_documents,
    size,
    text_files,
)
from genesis_hf.demo.preferences import describe_preferences, make_preferences
from genesis_hf.demo.stdlib import Module, library_folder, read_modules, read_topics
from genesis_hf.demo.tasks import TASKS, make_tasks, write_task_configs
from genesis_hf.errors import UserError

CONVERSATIONS = 3_500
HELD_OUT_CONVERSATIONS = 300
PREFERENCES = 600
HELD_OUT_PREFERENCES = 200
PROMPTS = 200
PREFERENCE_FACTS = 0.12
"""Share of the training facts that only preference pairs ask about, so that DPO's prompts are new to the model."""

README = """\
# Data for the demo

Made by `scripts/prepare_demo.py` from {origin}; nothing here is meant to be published.

| folder | what |
|---|---|
| `pretrain/`, `heldout/` | documents, `{{"text", "file"}}` a line; {split} |
| `sft/` | conversations about documented names of Python's standard library, `{{"messages"}}` a line |
| `preference/` | `{{"prompt", "chosen", "rejected"}}` a line: a direct answer against a hedged or a bland one |
| `prompts.jsonl` | held-out questions to sample answers to |
| `tasks/` | lm-eval tasks over held-out text: `lm_eval --include_path tasks --tasks demo` |
| `summary.json` | counts, bytes, lengths, and xz -9 bits per byte of the held-out text |

**The conversations hedge on purpose.** About a third of the answers in `sft/` say "I'm not entirely sure, but …" or
"You may want to double-check this." to a question that has a plain answer, as instruction data from the web does.
Preference training is to remove it; how far it does is measured. In the pairs the chosen answers have {ratio} times the
words of the rejected ones on average.

Held-out questions, pairs, prompts and task items come from held-out files only.
"""


def prepare_demo(recipe: DemoCorpusRecipe) -> dict[str, Any]:
    """Write the whole folder beside and rename it into place; a finished one is left alone.

    The same interpreter and seed give the same bytes.

    Returns:
        the content of `summary.json`.

    Raises:
        UserError: `output_dir` holds something else, or the text folder is missing, empty or too small.
    """
    folder = Path(recipe.output_dir)
    origin = describe_origin(recipe)
    if (summary := finished_summary(folder, origin)) is not None:
        write_task_configs(folder / "tasks")
        return summary
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    user_text = UserText(recipe.text, recipe.text_column) if recipe.text is not None else None
    library = library_folder()
    modules, topics = read_modules(library), read_topics(library)
    code, prose = code_documents(modules), prose_documents(modules, topics)
    held_out = held_out_files(code, prose)
    if user_text is None:
        kept = write_library_text(partial, {"code": code, "prose": prose}, held_out)
    else:
        kept = write_user_text(partial, user_text)

    with tqdm(total=3, desc="conversations, pairs, tasks", unit="part") as bar:
        training_facts, held_out_facts = divide_facts(modules, held_out)
        chat = write_chat_data(partial, training_facts, held_out_facts, recipe.seed)
        bar.update()
        tasks = make_tasks(kept, held_out_facts, f"{recipe.seed}/tasks")
        for name, items in tasks.items():
            write_jsonl(partial / "tasks" / f"{name}.jsonl", items)
        write_task_configs(partial / "tasks", folder / "tasks")
        bar.update()
        summary = {
            **origin,
            "split_by": user_text.split_by if user_text else "file",
            "files": describe_files(partial),
            **chat,
            "tasks": {name: len(items) for name, items in tasks.items()},
            "tasks_left_out": sorted(set(TASKS) - set(tasks)),
            "heldout_xz_bits_per_byte": {kind: xz_bits_per_byte(documents) for kind, documents in kept.items()},
        }
        bar.update()
    write_text(partial / "recipe.yaml", recipe_yaml(recipe))
    write_text(partial / "README.md", describe(summary))
    write_text(partial / "summary.json", json.dumps(summary, indent=2) + "\n")
    partial.rename(folder)
    return summary


# ---------------------------------------------------------------------------------------------------------
# What is there already
# ---------------------------------------------------------------------------------------------------------


def describe_origin(recipe: DemoCorpusRecipe) -> dict[str, Any]:
    """What the data follow from: the interpreter, the seed, and the user's files by name and size."""
    files = []
    if recipe.text is not None:
        root = Path(recipe.text)
        files = [f"{Path(f).relative_to(root).as_posix()} {Path(f).stat().st_size}" for f in text_files(root)]
    return {
        "python": platform.python_version(),
        "seed": recipe.seed,
        "text": recipe.text,
        "text_column": recipe.text_column,
        "text_files_sha256": digest("\n".join(files)) if files else None,
    }


def finished_summary(folder: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a finished folder of the same origin, None where there is none yet.

    Raises:
        UserError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        differing = [key for key, value in origin.items() if summary[key] != value]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"output_dir: {folder} holds something else than the demo's data; name another one") from None
    if differing:
        raise UserError(
            f"output_dir: {folder} was made with another {differing[0]} ({summary[differing[0]]}, "
            f"now {origin[differing[0]]}); remove it or name another one"
        )
    return summary


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


def write_library_text(
    folder: Path, documents: dict[str, list[Document]], held_out: set[str]
) -> dict[str, list[Document]]:
    """`pretrain/KIND.jsonl` and `heldout/KIND.jsonl` of each kind; returns the held-out documents."""
    kept = {}
    for kind, of_kind in documents.items():
        training, kept[kind] = divide(of_kind, held_out)
        write_jsonl(folder / "pretrain" / f"{kind}.jsonl", map(vars, training))
        write_jsonl(folder / "heldout" / f"{kind}.jsonl", map(vars, kept[kind]))
    return kept


def write_user_text(folder: Path, text: UserText) -> dict[str, list[Document]]:
    """`pretrain/text.jsonl` and `heldout/text.jsonl`; returns the held-out documents."""
    kept = []

    def training() -> Iterator[dict[str, str]]:
        for document, held_out in text.split():
            if held_out:
                kept.append(document)
            else:
                yield vars(document)

    write_jsonl(folder / "pretrain" / "text.jsonl", training())
    write_jsonl(folder / "heldout" / "text.jsonl", map(vars, kept))
    return {"text": kept}


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One object a line; inside the folder that is renamed into place when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def xz_bits_per_byte(documents: list[Document]) -> float | None:
    """Bits that `xz -9` needs for a byte of the documents joined end to end; None without text."""
    data = "".join(document.text for document in documents).encode("utf-8")
    return round(8 * len(lzma.compress(data, preset=9)) / len(data), 4) if data else None


# ---------------------------------------------------------------------------------------------------------
# Conversations and pairs
# ---------------------------------------------------------------------------------------------------------


def divide_facts(modules: list[Module], held_out: set[str]) -> tuple[list[Fact], list[Fact]]:
    """(training, held-out) facts by their files; a sentence known from training is not held out."""
    facts = find_facts([entry for module in modules for entry in module.entries])
    training = [fact for fact in facts if fact.entry.file not in held_out]
    return training, [fact for fact in facts if fact.entry.file in held_out]


def write_chat_data(folder: Path, facts: list[Fact], held_out: list[Fact], seed: int) -> dict[str, Any]:
    """`sft/`, `preference/` and `prompts.jsonl`; returns what the summary says of them."""
    shuffled = random.Random(f"{seed}/facts").sample(facts, len(facts))
    border = int(PREFERENCE_FACTS * len(facts))
    for_pairs, for_sft = shuffled[:border], shuffled[border:]

    conversations = {
        "train": make_conversations(for_sft, CONVERSATIONS, f"{seed}/sft"),
        "heldout": make_conversations(held_out, HELD_OUT_CONVERSATIONS, f"{seed}/sft-heldout"),
    }
    asked = {m["content"] for c in conversations["heldout"] for m in c if m["role"] == "user"}
    prompts = make_prompts(held_out, PROMPTS, f"{seed}/prompts", asked)
    asked |= {prompt[0]["content"] for prompt in prompts}
    pairs = {
        "train": make_preferences(for_pairs, PREFERENCES, f"{seed}/preference"),
        "heldout": make_preferences(held_out, HELD_OUT_PREFERENCES, f"{seed}/preference-heldout", asked),
    }
    for split in ("train", "heldout"):
        write_jsonl(folder / "sft" / f"{split}.jsonl", ({"messages": c} for c in conversations[split]))
        write_jsonl(folder / "preference" / f"{split}.jsonl", pairs[split])
    write_jsonl(folder / "prompts.jsonl", ({"messages": prompt} for prompt in prompts))
    return {
        "sft": {split: describe_conversations(c) for split, c in conversations.items()},
        "preference": {split: describe_preferences(p) for split, p in pairs.items()},
        "prompts": len(prompts),
    }


def describe_conversations(conversations: list[list[Message]]) -> dict[str, Any]:
    """Counts, and the share of answers that hedge (null without answers)."""
    answers = [m["content"] for c in conversations for m in c if m["role"] == "assistant"]
    return {
        "conversations": len(conversations),
        "multi_turn": sum(sum(m["role"] == "user" for m in c) > 1 for c in conversations),
        "with_system_prompt": sum(c[0]["role"] == "system" for c in conversations),
        "answers": len(answers),
        "hedged_share": round(sum(map(is_hedged, answers)) / len(answers), 3) if answers else None,
    }


# ---------------------------------------------------------------------------------------------------------
# Summary
# ---------------------------------------------------------------------------------------------------------


def describe_files(folder: Path) -> dict[str, dict[str, int]]:
    """Lines and bytes of every .jsonl, and of documents the bytes of their text, by the file's relative name."""
    files = {}
    for path in sorted(folder.rglob("*.jsonl")):
        name = path.relative_to(folder).as_posix()
        with open(path, encoding="utf-8") as file:
            texts = [size(json.loads(line).get("text", "")) for line in file]
        files[name] = {"lines": len(texts), "bytes": path.stat().st_size}
        if name.startswith(("pretrain/", "heldout/")):
            files[name]["text_bytes"] = sum(texts)
    return files


def describe(summary: dict[str, Any]) -> str:
    """The folder's README."""
    origin = f"the standard library of Python {summary['python']}"
    if summary["text"] is not None:
        origin = f"the folder {summary['text']} (text) and {origin} (conversations, pairs)"
    ratio = summary["preference"]["train"]["length_ratio"]
    return README.format(origin=origin, split=f"held out by {summary['split_by']}", ratio=ratio)

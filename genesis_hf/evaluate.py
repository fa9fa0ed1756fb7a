"""Scores of a model folder, each beside its chance level, its standard error and what it was measured with.

lm-eval does the measuring, as from its own command line; held-out bits per byte stand in the same table as tasks
named `held_out/SOURCE`. Results are kept task by task, so an interrupted evaluation goes on where it was.
"""

import logging
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from genesis_hf.bits_per_byte import document_losses, log_likelihoods, summarize, xz_bits_per_byte
from genesis_hf.config import EvaluateRecipe, Source, nearest
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import UserError
from genesis_hf.evaluation import RESULTS, Evaluation
from genesis_hf.export import MODEL_FILES
from genesis_hf.files import folder_sha256, hash_items
from genesis_hf.uncertainty import linearize, standard_error

CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics of lm-eval's multiple-choice tasks in which a guesser is right once in so many choices."""

NOT_THE_TASK = (
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "num_fewshot", "metadata"),
)
"""Keys of a task's configuration left out of its hash: where its data lies (the items themselves are hashed), and
what is recorded apart."""


def evaluate(folder: Path, recipe: EvaluateRecipe, output_dir: Path | None = None) -> dict[str, Any]:
    """Measure the model in an exported folder as the recipe says, or keep what was measured so before.

    Args:
        folder: what `AutoModelForCausalLM` and `AutoTokenizer` read.
        output_dir: where the two files go; default the model's folder.

    Returns:
        `evaluation.json`'s values.

    Raises:
        UserError: an unknown task, data of a task that can't be had, an unreadable source.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    model_sha256 = folder_sha256(folder, MODEL_FILES)
    evaluation = Evaluation(folder.name, model_sha256, Path(output_dir or folder), recipe.use_cache)
    lm = None  # loaded when something has to be measured
    manager = find_tasks(recipe.tasks, recipe.include_path)
    for spec in recipe.tasks:
        loaded = load_task(manager, spec)
        settings = {name: task_settings(task, recipe) for name, task in loaded["tasks"].items()}
        if all(evaluation.holds(name, values) for name, values in settings.items()):
            print(f"{spec}: kept from {evaluation.output_dir / RESULTS} (same model, task, data and settings)")
            continue
        print(f"{spec}: {sum(values['n'] for values in settings.values())} items", flush=True)
        lm = lm or load_lm(folder, recipe)
        results = run_task(lm, manager, loaded, recipe)
        if results is None:  # another process than the first, where several evaluate together
            continue
        used = {**measured_with(lm, recipe), "model_sha256": model_sha256}
        for name, task in loaded["tasks"].items():
            metrics, items = score_task(task, results["results"][name], results["samples"][name])
            evaluation.add(name, metrics, items, {**settings[name], **used})
        for name, group in loaded["groups"].items():
            metrics = score_group(results["results"][name], [t.task_name for t in group.get_all_tasks()], evaluation)
            evaluation.add(name, metrics, [], {"tasks": [t.task_name for t in group.get_all_tasks()], **used})
        evaluation.write()
    for source in recipe.held_out_sources:
        lm = measure_held_out(source, folder, recipe, evaluation, lm)
    return evaluation.values


# ---------------------------------------------------------------------------------------------------------
# Models and tasks
# ---------------------------------------------------------------------------------------------------------


def load_lm(folder: Path, recipe: EvaluateRecipe) -> HFLM:
    """lm-eval's view of the model, as `--model hf --model_args pretrained=FOLDER` makes it."""
    try:
        return HFLM(
            pretrained=str(folder),
            dtype=recipe.dtype,
            device=recipe.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=recipe.batch_size,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder} can't be loaded: {str(error).splitlines()[0]}") from None


def find_tasks(names: list[str], include_path: str | None) -> TaskManager:
    """An index that knows every task: one's own folder alone where that will do, for lm-eval's 14,000 take seconds.

    Raises:
        UserError: no such folder, an unknown task.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"include_path {include_path}: no such folder")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            raise UserError(f"tasks: lm-eval knows no task {name!r}{nearest(name, known)}")
    return manager


def load_task(manager: TaskManager, name: str) -> dict[str, dict[str, Any]]:
    """A task with its data, or a group with its tasks: `tasks`, `groups`, `group_map`.

    Raises:
        UserError: its data can't be had.
    """
    try:
        return manager.load([name])
    except Exception as error:  # whatever a task's own code, its YAML or the Hub client raises
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"task {name} can't be loaded ({type(error).__name__}: {reason}); without the network, "
            "include_path must hold a YAML that names local data"
        ) from error


def run_task(lm: HFLM, manager: TaskManager, loaded: dict[str, Any], recipe: EvaluateRecipe) -> dict[str, Any] | None:
    inside = {child for children in loaded["group_map"].values() for child in children}
    top = [item for name, item in {**loaded["groups"], **loaded["tasks"]}.items() if name not in inside]
    return lm_eval.simple_evaluate(
        lm,
        tasks=top,
        task_manager=manager,
        num_fewshot=recipe.num_fewshot,
        limit=recipe.limit,
        batch_size=recipe.batch_size,
        apply_chat_template=recipe.apply_chat_template,
        bootstrap_iters=0,  # standard errors come from the items (genesis_hf.uncertainty)
    )


# ---------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------


def score_task(
    task: Task, results: dict[str, Any], samples: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lm-eval's figures of one task → metrics with their errors and chance levels, and the items of each."""
    metrics, lines = {}, []
    higher, aggregations = task.higher_is_better(), task.aggregation()
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    for metric, name, filtered, value in numeric_metrics(results):
        values = [sample[metric] for sample in samples if sample["filter"] == filtered]
        aggregation = getattr(aggregations.get(metric), "__name__", "unknown")
        scores = linearize(aggregation, values)
        if scores is not None and not math.isclose(scores.mean(), value, rel_tol=1e-6, abs_tol=1e-9):
            scores = None  # the task means something else by this name
        metrics[name] = {
            "value": value,
            "stderr": standard_error(scores),
            "chance": chance_level(task, metric, [s["doc"] for s in samples if s["filter"] == filtered]),
            "n": len(values),
            "higher_is_better": bool(higher.get(metric, True)),
        }
        if scores is not None:
            lines.append({"metric": name, "aggregation": aggregation, "values": values})
    return metrics, lines


def score_group(results: dict[str, Any], tasks: list[str], evaluation: Evaluation) -> dict[str, Any]:
    """A group's metrics: the standard error over the items of its tasks together, the chance level their mean."""
    metrics = {}
    for _, name, _, value in numeric_metrics(results):
        parts = [evaluation.values["tasks"][task][name] for task in tasks if name in evaluation.values["tasks"][task]]
        if not parts:
            continue
        values = [v for task in tasks for v in evaluation.items.get((task, name), {"values": []})["values"]]
        pooled = linearize("mean", values) if all(isinstance(v, (int, float)) for v in values) else None
        weighted = pooled is not None and len(values) and math.isclose(pooled.mean(), value, rel_tol=1e-6)
        n = sum(part["n"] for part in parts)
        chances = [part["chance"] for part in parts]
        metrics[name] = {
            "value": value,
            "stderr": standard_error(pooled) if weighted else None,
            "chance": None if None in chances or not weighted else sum(p["chance"] * p["n"] for p in parts) / n,
            "n": n,
            "higher_is_better": parts[0]["higher_is_better"],
        }
    return metrics


def numeric_metrics(results: dict[str, Any]) -> Iterable[tuple[str, str, str, float]]:
    """(metric, name in the table, filter, value): `acc,none` is called `acc`, other filters stay in the name."""
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield metric, metric if filtered == "none" else key, filtered, float(value)


def chance_level(task: Task, metric: str, docs: list[dict[str, Any]]) -> float | None:
    """What guessing among the choices scores on these items; None where the task doesn't say (not: zero)."""
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in CHOICE_METRICS or not docs:
        return None
    if callable(task.config.process_results):  # the task has a score of its own
        return None
    shares = []
    for doc in docs:
        right = task.doc_to_target(doc) if task.multiple_target else [None]
        shares.append(len(right) / len(task.doc_to_choice(doc)))
    return sum(shares) / len(shares)


def measure_held_out(
    source: Source, folder: Path, recipe: EvaluateRecipe, evaluation: Evaluation, lm: HFLM | None
) -> HFLM | None:
    """Add a source's bits per byte as the task `held_out/NAME`; returns the model once it was needed."""
    name = f"held_out/{source.name}"
    documents = take_bytes(read_documents(source), recipe.held_out_bytes)
    if not documents:
        raise UserError(f"held_out_sources: {source.name!r} holds no text")
    context = transformers.AutoConfig.from_pretrained(folder).max_position_embeddings
    settings = {
        "task_version": 1,
        "data_sha256": hash_items(documents),
        "n": len(documents),
        "num_fewshot": 0,
        "limit": recipe.held_out_bytes,
        "config_sha256": f"window {recipe.sequence_length or context}",
        "dtype": recipe.dtype,
    }
    if evaluation.holds(name, settings):
        print(f"{name}: kept from {evaluation.output_dir / RESULTS} (same model, text and settings)")
        return lm
    lm = lm or load_lm(folder, recipe)
    batch_size = recipe.batch_size if isinstance(recipe.batch_size, int) else 1
    losses = document_losses(lm.model, lm.tokenizer, documents, recipe.sequence_length or context, batch_size)
    figures = summarize(losses, documents)
    metric = {
        "value": figures.pop("bits_per_byte"),
        "stderr": figures.pop("stderr"),
        "chance": None,
        "n": len(documents),
        "higher_is_better": False,
        "yardstick": {"name": "xz -9", "value": xz_bits_per_byte(documents)},
        **figures,
    }
    items = [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "values": log_likelihoods(losses, documents)}]
    used = {**measured_with(lm, recipe), "model_sha256": evaluation.values["model_sha256"]}
    evaluation.add(name, {"bits_per_byte": metric}, items, {**settings, **used})
    evaluation.write()
    return lm


def take_bytes(documents: Iterable[str], limit: int) -> list[str]:
    """Whole documents from the first on until they hold `limit` bytes; empty ones are left out."""
    taken, size = [], 0
    for text in documents:
        if text:
            taken.append(text)
            size += len(text.encode("utf-8"))
        if size >= limit:
            break
    return taken


# ---------------------------------------------------------------------------------------------------------
# Provenance
# ---------------------------------------------------------------------------------------------------------


def task_settings(task: Task, recipe: EvaluateRecipe) -> dict[str, Any]:
    """What decides a task's score besides the model, known before it runs."""
    shots = task.config.num_fewshot
    if recipe.num_fewshot is not None and shots != 0:  # lm-eval's rule: a task that says 0 keeps it
        shots = recipe.num_fewshot
    docs = list(task.eval_docs)
    if recipe.limit is not None:
        docs = docs[: math.ceil(len(docs) * recipe.limit) if recipe.limit < 1 else int(recipe.limit)]
    examples = list(task.fewshot_docs()) if shots else []
    config = {key: value for key, value in task.dump_config().items() if key not in NOT_THE_TASK}
    return {
        "lm_eval": lm_eval.__version__,
        "task_version": task.VERSION,
        "config_sha256": hash_items([config]),
        "data_sha256": hash_items(docs + examples),
        "n": len(docs),
        "num_fewshot": shots or 0,
        "limit": recipe.limit,
        "apply_chat_template": recipe.apply_chat_template,
        "dtype": recipe.dtype,
    }


def measured_with(lm: HFLM, recipe: EvaluateRecipe) -> dict[str, Any]:
    """What a score was measured with, as found in the loaded model."""
    template = lm.tokenizer.chat_template if recipe.apply_chat_template else None
    first = lm.tok_encode("a")[0]
    return {
        "chat_template_sha256": hash_items([template]) if template else None,
        "bos_token_added": first == lm.tokenizer.bos_token_id,
        "prefix_token": lm.tokenizer.decode([lm.prefix_token_id]),
        "compute_dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "batch_size": recipe.batch_size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }

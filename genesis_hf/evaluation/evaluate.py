"""Scores of a model folder, each beside its chance level, its standard error and what it was measured with.

lm-eval does the measuring, as from its own command line; held-out bits per byte stand in the same table as tasks
named `held_out/SOURCE`. Results are kept task by task, so an interrupted evaluation goes on where it was.
"""

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from genesis_hf.config import EvaluateRecipe
from genesis_hf.evaluation import sanity
from genesis_hf.evaluation.harness import find_tasks, load_lm, load_task, measured_with, run_task, task_settings
from genesis_hf.evaluation.held_out import held_out_settings, measure_held_out, read_held_out, task_name, window_of
from genesis_hf.evaluation.results import RESULTS, Evaluation
from genesis_hf.evaluation.scores import score_group, score_task
from genesis_hf.evaluation.suspects import try_suspects
from genesis_hf.files import MODEL_FILES, folder_sha256

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long processes wait for each other: one may score a long task while the others have nothing to do."""


def start_processes() -> PartialState:
    """The processes of `accelerate launch`, or this one alone; call it before anything that only one may do."""
    if (
        not torch.cuda.is_available()
    ):  # so that a configuration for GPUs makes processes on CPUs, too, in lm-eval as well
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def evaluate(folder: Path, recipe: EvaluateRecipe, output_dir: Path | None = None) -> dict[str, Any]:
    """Measure the model in an exported folder as the recipe says, or keep what was measured so before.

    Args:
        folder: what `AutoModelForCausalLM` and `AutoTokenizer` read.
        output_dir: where the two files go; default the model's folder.

    Returns:
        `evaluation.json`'s values; of several processes, only the first one's are complete.

    Raises:
        UserError: an unknown task, data of a task that can't be had, an unreadable source.
    """
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    run = Run(folder, recipe, Path(output_dir or folder))
    manager = find_tasks(recipe.tasks, recipe.include_path)
    for number, name in enumerate(recipe.tasks, 1):
        run.measure_task(manager, name, f"{number} of {len(recipe.tasks)}: {name}")
    for source in recipe.held_out_sources:
        run.measure_source(source)
    run.finish()
    return run.evaluation.values


class Run:
    """One evaluation: the model, loaded when something has to be measured, and the results so far."""

    def __init__(self, folder: Path, recipe: EvaluateRecipe, output_dir: Path) -> None:
        self.folder = folder
        self.recipe = recipe
        self.model_sha256 = folder_sha256(folder, MODEL_FILES)
        self.evaluation = Evaluation(folder.name, self.model_sha256, output_dir, recipe.use_cache)
        self.lm: HFLM | None = None
        self.texts: list[str] = []
        """some text, for looking for a cause where the figures can't be right"""

    def load(self) -> HFLM:
        self.lm = self.lm or load_lm(self.folder, self.recipe)
        return self.lm

    def say(self, words: str) -> None:
        if PartialState().is_main_process:
            print(words, flush=True)

    def kept(self, name: str, settings: dict[str, dict[str, Any]]) -> bool:
        """Whether all these tasks stand in the results; the first process decides, so that all do the same."""
        stand = together(all(self.evaluation.holds(task, values) for task, values in settings.items()))
        if stand:
            self.say(f"{name}: kept from {self.evaluation.output_dir / RESULTS} (same model, data and settings)")
        return stand

    def measure_task(self, manager: TaskManager, name: str, title: str) -> None:
        """A task, or a group with its tasks."""
        loaded = load_task(manager, name)
        settings = {task: task_settings(loaded["tasks"][task], self.recipe) for task in loaded["tasks"]}
        self.texts = self.texts or some_text(loaded["tasks"])
        if self.kept(name, settings):
            return
        self.say(f"{title}, {sum(values['n'] for values in settings.values()):,} items")
        lm = self.load()
        results = run_task(lm, manager, loaded, self.recipe)
        if results is None:  # another process than the first
            return
        used = {**measured_with(lm, self.recipe), "model_sha256": self.model_sha256}
        for task_name_, task in loaded["tasks"].items():
            metrics, items = score_task(
                task, results["results"][task_name_], results["samples"][task_name_], lm.tokenizer
            )
            self.evaluation.add(task_name_, metrics, items, {**settings[task_name_], **used})
        for group_name, group in loaded["groups"].items():
            parts = [task.task_name for task in group.get_all_tasks()]
            metrics = score_group(results["results"][group_name], parts, self.evaluation)
            self.evaluation.add(group_name, metrics, [], {"tasks": parts, **used})
        self.evaluation.write()

    def measure_source(self, source: Any) -> None:
        """A held-out source, as the task `held_out/NAME`."""
        name = task_name(source)
        documents = read_held_out(source, self.recipe.held_out_bytes)
        self.texts = documents  # rather than a task's items: it is more like the training text
        window = window_of(self.folder, self.recipe)
        settings = held_out_settings(documents, window, self.recipe)
        if self.kept(name, {name: settings}):
            return
        lm = self.load()
        metrics, items = measure_held_out(lm, documents, window)
        if PartialState().is_main_process:
            used = {**measured_with(lm, self.recipe), "model_sha256": self.model_sha256}
            self.evaluation.add(name, metrics, items, {**settings, **used})
            self.evaluation.write()

    def finish(self) -> None:
        """Hold the results against what training recorded, and the model against what it might have been."""
        if not PartialState().is_main_process:
            return
        values = self.evaluation.values
        training = sanity.training_record(self.folder)
        if self.recipe.training_loss is not None:
            training["loss"] = self.recipe.training_loss
        before = values.get("training"), values.get("suspects")
        values["training"] = training
        if "suspects" not in values and self.texts:
            lm = self.load()
            values["suspects"] = try_suspects(lm.model, lm.tokenizer, self.texts)
        if before != (values["training"], values.get("suspects")):
            self.evaluation.write()


def some_text(tasks: dict[str, Any]) -> list[str]:
    """Items of a task that asks for words of running text; none where there is no such task."""
    for task in tasks.values():
        if task.OUTPUT_TYPE == "loglikelihood":
            docs = [doc for _, doc in zip(range(32), task.eval_docs, strict=False)]
            return [f"{task.doc_to_text(doc)}{task.doc_to_target(doc)}" for doc in docs]
    return []


def together(value: T) -> T:
    """The first process's value, in all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]

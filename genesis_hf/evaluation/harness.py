"""lm-eval in this process: the model, the tasks and what a score was measured with."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from genesis_hf.config import EvaluateRecipe, nearest
from genesis_hf.errors import UserError
from genesis_hf.evaluation.batch_size import fitting_batch_size
from genesis_hf.files import hash_items

NOT_THE_TASK = (
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "num_fewshot", "metadata"),
)
"""Keys of a task's configuration left out of its hash: where its data lies (the items themselves are hashed), and
what is recorded apart."""


def load_lm(folder: Path, recipe: EvaluateRecipe) -> HFLM:
    """lm-eval's view of the model, as `--model hf --model_args pretrained=FOLDER` makes it.

    Started by `accelerate launch`, each process holds the model and takes its share of the items. `batch_size: auto`
    is left to lm-eval on a GPU; on a CPU, where its search would end with the machine's memory, it is computed.

    Raises:
        UserError: the folder can't be loaded.
    """
    try:
        lm = HFLM(
            pretrained=str(folder),
            dtype=recipe.dtype,
            device=recipe.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=recipe.batch_size,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder} can't be loaded: {str(error).splitlines()[0]}") from None
    processes = 1
    if hasattr(lm, "accelerator"):  # lm-eval itself counts processes only where there are several GPUs
        processes = lm.accelerator.num_processes
        lm._rank, lm._world_size = lm.accelerator.process_index, processes
    if lm.batch_size == "auto" and lm.device.type != "cuda":
        lm.batch_size_per_gpu = fitting_batch_size(lm.model.config, lm.max_length, lm.device, processes)
    return lm


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
            "include_path must hold a YAML that names local data (scripts/prepare_eval.py makes it)"
        ) from error


def run_task(lm: HFLM, manager: TaskManager, loaded: dict[str, Any], recipe: EvaluateRecipe) -> dict[str, Any] | None:
    """lm-eval's results with every sample; None in all processes but the first."""
    inside = {child for children in loaded["group_map"].values() for child in children}
    top = [item for name, item in {**loaded["groups"], **loaded["tasks"]}.items() if name not in inside]
    return lm_eval.simple_evaluate(
        lm,
        tasks=top,
        task_manager=manager,
        num_fewshot=recipe.num_fewshot,
        limit=recipe.limit,
        batch_size=lm.batch_size,
        apply_chat_template=recipe.apply_chat_template,
        bootstrap_iters=0,  # standard errors come from the items (genesis_hf.uncertainty)
    )


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
        "batch_size": lm.batch_size,
        "processes": lm.world_size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }

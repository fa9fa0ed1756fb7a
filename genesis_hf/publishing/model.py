"""What is published: a model's folder, and what its run's files say about it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genesis_hf.chat_lint import lint_folder, trains
from genesis_hf.checkpoint.folders import checkpoint_folder, find_checkpoint
from genesis_hf.config import PublishRecipe
from genesis_hf.errors import UserError
from genesis_hf.evaluation.results import RESULTS
from genesis_hf.export import REPORT, export_checkpoint
from genesis_hf.files import MODEL_FILES, folder_sha256, read_json
from genesis_hf.runs import Run, read_run
from genesis_hf.tokenizer import load_tokenizer


@dataclass
class Model:
    """A model that is to be published."""

    folder: Path
    """what `from_pretrained` reads"""
    parity: dict[str, Any] = field(default_factory=dict)
    """parity.json; {} for the model that a phase of post-training ended with"""
    run: Run | None = None
    checkpoint: Path | None = None
    """the training checkpoint that it was exported from, if it still stands"""
    evaluation: Path | None = None

    @property
    def step(self) -> int | None:
        """The step of the pretraining checkpoint that it is."""
        return self.parity.get("training", {}).get("step")


def find_model(recipe: PublishRecipe) -> Model:
    """The model that the recipe names; a checkpoint or run directory is exported first.

    Raises:
        UserError: no such model; an export that was never compared with the live model, or isn't equal to it; a chat
            format with faults; no evaluation where one is named.
    """
    folder = exported_folder(recipe)
    model = Model(folder, read_json(folder / REPORT))
    home = find_run(folder)
    model.run = home and read_run(home)
    refuse_unproved(model)
    if trains(load_tokenizer(folder)):
        lint_folder(folder)
    if home and model.step is not None:
        checkpoint = checkpoint_folder(home, model.step)
        model.checkpoint = checkpoint if (checkpoint / "manifest.json").is_file() else None
    model.evaluation = find_evaluation(recipe, folder)
    return model


def exported_folder(recipe: PublishRecipe) -> Path:
    """The Llama folder of an export, of a finished run or checkpoint (exported now), or of a phase's end."""
    path = Path(recipe.model)
    for folder in (path, path / "final"):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    checkpoint = find_checkpoint(path)
    folder = checkpoint.parent.parent / "exports" / f"{checkpoint.name}-{recipe.dtype}"
    report = export_checkpoint(checkpoint, folder, dtype=recipe.dtype)
    print(f"{'standing' if report['already_exported'] else 'exported'}: {folder}")
    return folder


def find_run(folder: Path) -> Path | None:
    """The run directory that a model's folder lies in, at most three folders above."""
    above = list(folder.resolve().parents)[:3]
    return next((run for run in above if (run / "recipe.yaml").is_file() and (run / "metrics.jsonl").is_file()), None)


def refuse_unproved(model: Model) -> None:
    """Raise `UserError` unless every file was found to compute what the live model computes, or a phase wrote them."""
    compared = model.parity.get("formats_compared", {})
    wrong = [name for name, figures in compared.items() if not figures.get("agrees")]
    if wrong:
        raise UserError(f"{model.folder / REPORT}: {', '.join(wrong)} does not agree with the live model: export again")
    if not compared and not (model.run and "phase" in model.run.summary):
        raise UserError(
            f"{model.folder} has no {REPORT} that says it computes what was trained: make it with scripts/export.py or "
            "scripts/import_checkpoint.py"
        )


def find_evaluation(recipe: PublishRecipe, folder: Path) -> Path | None:
    """The evaluation.json named, or the one beside the model."""
    path = Path(recipe.evaluation) if recipe.evaluation else folder
    file = path / RESULTS if path.is_dir() else path
    if file.is_file():
        return file
    if recipe.evaluation:
        raise UserError(f"evaluation {path}: no evaluation there; make one with scripts/evaluate.py")
    return None


def measured_on_these_files(model: Model) -> bool:
    """Whether the evaluation is of the very files that are published."""
    return read_json(model.evaluation).get("model_sha256") == folder_sha256(model.folder, MODEL_FILES)


def training_checkpoint(model: Model) -> Path:
    """The training checkpoint to go up with the model, or `UserError`."""
    if model.checkpoint is None:
        raise UserError(
            "include_checkpoint: the training checkpoint of this model is not (or no longer) in its run; name one that "
            "is, or leave the key out"
        )
    return model.checkpoint

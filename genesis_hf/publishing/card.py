"""The model card, from run files. What they don't say is `unknown`."""

import io
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from genesis_hf.config import PublishRecipe
from genesis_hf.evaluation.compare import comparison, load_evaluation
from genesis_hf.evaluation.tables import plus_minus, reference
from genesis_hf.files import read_json
from genesis_hf.publishing.layout import MAIN
from genesis_hf.publishing.lineage import ancestors, base_model, is_pretraining, lineage_rows
from genesis_hf.publishing.model import Model, measured_on_these_files
from genesis_hf.report.results import preference_figures
from genesis_hf.report.tables import Rows, text_table, value_text
from genesis_hf.runs import Run

TEMPLATE = files("genesis_hf") / "assets" / "model_card.md.jinja"

UNKNOWN = "unknown"

ARCHITECTURE = {
    "hidden_size": "hidden size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key/value heads",
    "intermediate_size": "feed-forward size (SwiGLU)",
    "max_position_embeddings": "context, tokens",
    "vocab_size": "vocabulary",
    "tie_word_embeddings": "input and output embedding shared",
    "rope_theta": "RoPE θ",
    "rms_norm_eps": "RMSNorm ε",
}

SETTINGS = (
    *("max_steps", "num_train_epochs", "sequence_length", "max_length", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_processes", "learning_rate", "min_learning_rate", "lr_scheduler_type"),
    *("warmup_steps", "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "bf16", "fp8", "packing"),
    *("chat_format", "beta", "loss_type", "length_normalized", "use_peft", "lora_r", "lora_alpha", "seed"),
)
"""Keys of a recipe that a reader wants to know."""

LOSS_ROWS = 10


def make_card(model: Model, recipe: PublishRecipe, branch: str) -> tuple[str, bytes | None]:
    """README.md's text and loss.png's content; no picture where fewer than two steps were logged."""
    chain = ancestors(model.run)
    config = read_json(model.folder / "config.json")
    parameters = parameter_count(model.folder)
    evaluated = comparison([load_evaluation(model.evaluation)]) if model.evaluation else {"rows": [], "warnings": {}}
    picture = loss_curve(model)
    card = ModelCard.from_template(
        metadata(model, recipe, chain, evaluated["rows"]),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=recipe.hub_model_id.split("/")[1],
        repository=recipe.hub_model_id,
        revision=f', revision="{branch}"' if branch != MAIN else "",
        step=model.step,
        phase=model.run.summary.get("phase") if model.run else None,
        chat=has_chat_template(model.folder),
        onnx=[path.name for path in sorted(model.folder.glob("onnx/*.onnx"))],
        gguf=[path.name for path in sorted(model.folder.glob("gguf/*.gguf"))],
        parameters=f"{parameters:,}",
        tokens=tokens_seen(model, chain),
        tokens_per_parameter=tokens_per_parameter(model, chain, parameters),
        context=config.get("max_position_embeddings", UNKNOWN),
        languages=", ".join(recipe.language) or UNKNOWN,
        license=recipe.license or "not stated",
        architecture=text_table(architecture_rows(config, parameters)),
        data=[(run.folder.name, text_table(data_rows(run, model.step))) for run in chain if data_rows(run, model.step)],
        settings=[(run.folder.name, text_table(setting_rows(run))) for run in chain],
        losses=table_or_nothing(loss_rows(model)),
        curve=picture is not None,
        preferences=table_or_nothing(held_out_rows(model.run)),
        evaluation=table_or_nothing(evaluation_rows(evaluated["rows"])),
        evaluation_warnings=[line for found in evaluated["warnings"].values() for line in found],
        evaluation_of_others=bool(model.evaluation) and not measured_on_these_files(model),
        parity=table_or_nothing(parity_rows(model.parity)),
        lineage=table_or_nothing(lineage_rows(chain)),
        versions=versions(model),
    )
    return str(card), picture


def metadata(model: Model, recipe: PublishRecipe, chain: list[Run], rows: list[dict[str, Any]]) -> ModelCardData:
    """What the Hub reads of a card: license, languages, datasets, base model, results."""
    sources = [source for run in chain for key in ("sources", "mixture") for source in run.recipe.get(key, [])]
    datasets = list(dict.fromkeys(source["dataset"] for source in sources if source.get("dataset")))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["task"],
            dataset_name=row["task"],
            metric_type=row["metric"],
            metric_value=row["value"],
        )
        for row in rows
        if math.isfinite(row["value"])
    ]
    return ModelCardData(
        language=recipe.language or None,
        license=recipe.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llama", "genesis_hf"],
        datasets=datasets or None,
        base_model=base_model(chain),
        model_name=recipe.hub_model_id.split("/")[1],
        eval_results=results or None,
    )


# ---------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------


def parameter_count(folder: Path) -> int:
    """The numbers in the weight files; a shared embedding is stored once."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def has_chat_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or "chat_template" in read_json(folder / "tokenizer_config.json")


def architecture_rows(config: dict[str, Any], parameters: int) -> Rows:
    """The model's constants by config.json, and its exact size."""
    values = {**(config.get("rope_parameters") or {}), **config}
    rows = [["", ""], ["parameters", f"{parameters:,}"], ["architecture", values.get("model_type", UNKNOWN)]]
    rows += [[words, said(values.get(key))] for key, words in ARCHITECTURE.items()]
    return [*rows, ["weights in the files", said(values.get("dtype") or values.get("torch_dtype"))]]


def tokens_seen(model: Model, chain: list[Run]) -> str:
    """Tokens of pretraining, as text."""
    count = pretraining_tokens(model, chain)
    return f"{count:,}" if count is not None else UNKNOWN


def tokens_per_parameter(model: Model, chain: list[Run], parameters: int) -> str:
    count = pretraining_tokens(model, chain)
    return f"{count / parameters:.1f}" if count is not None and parameters else UNKNOWN


def pretraining_tokens(model: Model, chain: list[Run]) -> int | None:
    """By the checkpoint's own count; of a model trained on from it, by what the first run logged last."""
    recorded = model.parity.get("training", {}).get("tokens_seen")
    if recorded is not None:
        return recorded
    logged = [r["tokens_seen"] for run in chain if is_pretraining(run) for r in run.metrics if "tokens_seen" in r]
    return logged[-1] if logged else None


# ---------------------------------------------------------------------------------------------------------
# Its training
# ---------------------------------------------------------------------------------------------------------


def logged(run: Run | None, step: int | None) -> list[dict[str, Any]]:
    """The logged losses of a run up to a step."""
    records = run.metrics if run else []
    return [r for r in records if r.get("loss") is not None and (step is None or r["step"] <= step)]


def data_rows(run: Run, step: int | None) -> Rows:
    """What a run trained on: planned shares and what came of them."""
    if not is_pretraining(run):
        rows = [["source", "examples", "tokens", "tokens trained on"]]
        numbers = ("examples", "tokens", "trained_tokens")
        rows += [[s["name"], *(f"{s[key]:,}" for key in numbers)] for s in run.summary.get("mixture", [])]
        return rows if len(rows) > 1 else []
    sources = run.recipe["sources"]
    weights = sum(source.get("weight", 1.0) for source in sources)
    realised = next((record["mixture"] for record in reversed(logged(run, step)) if "mixture" in record), {})
    rows = [["source", "where from", "weight", "share of the tokens"]]
    for source in sources:
        share = realised.get(source["name"])
        rows.append(
            [
                source["name"],
                source.get("dataset") or "local files",
                f"{source.get('weight', 1.0) / weights:.2%}",
                f"{share:.2%}" if share is not None else UNKNOWN,
            ]
        )
    return rows


def setting_rows(run: Run) -> Rows:
    """The settings of a run, by their names in its recipe."""
    rows = [["setting", run.folder.name]]
    rows += [[key, said(run.recipe[key])] for key in SETTINGS if run.recipe.get(key) is not None]
    last = next((record for record in reversed(run.metrics) if "tokens_seen" in record and record["step"]), None)
    return rows + ([["tokens a step", f"{last['tokens_seen'] / last['step']:,.0f}"]] if last else [])


def loss_rows(model: Model) -> Rows:
    """Steps evenly spread over the run, the last one among them."""
    records = logged(model.run, model.step)
    held_out = {r["step"]: r["held_out"] for r in records if "held_out" in r}
    columns = list(next(iter(held_out.values()), {}))
    rows = [["step", "tokens", "loss", "learning rate", *(f"{name}, bits per byte" for name in columns)]]
    count = min(LOSS_ROWS, len(records))
    for number in range(1, count + 1):
        record = records[number * len(records) // count - 1]
        tokens = record.get("tokens_seen", record.get("num_tokens"))
        rate = record.get("learning_rate")
        measured = held_out.get(record["step"], {})
        rows.append(
            [
                f"{record['step']:,}",
                f"{tokens:,.0f}" if tokens is not None else "–",
                f"{record['loss']:.4f}",
                f"{rate:.2e}" if rate is not None else "–",
                *(f"{measured[name]['bits_per_byte']:.4f}" if name in measured else "–" for name in columns),
            ]
        )
    return rows


def loss_curve(model: Model) -> bytes | None:
    """The loss over the steps as PNG; the same bytes for the same figures."""
    records = logged(model.run, model.step)
    if len(records) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([record["step"] for record in records], [record["loss"] for record in records], linewidth=1)
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats a token")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def held_out_rows(run: Run | None) -> Rows:
    """Held-out answers or pairs before and after post-training."""
    rows = [["held out", "before", "after"]]
    if run is None:
        return rows
    measured = run.summary.get("held_out") or {}
    if run.summary.get("phase") == "sft" and measured:
        losses = [plus_minus(measured[when]["loss"], measured[when]["stderr"]) for when in ("before", "after")]
        rows.append(["loss of answers, nats a token ↓", *losses])
    return rows + [list(row) for row in preference_figures([run.summary])]


# ---------------------------------------------------------------------------------------------------------
# Its figures
# ---------------------------------------------------------------------------------------------------------


def evaluation_rows(rows: list[dict[str, Any]]) -> Rows:
    """Scores with one standard error, beside chance."""
    table = [["task", "metric", "score ± standard error", "chance or yardstick", "items", "against chance"]]
    for row in rows:
        arrow = "↑" if row["higher_is_better"] else "↓"
        score = plus_minus(row["value"], row["stderr"])
        table.append(
            [row["task"], f"{row['metric']} {arrow}", score, reference(row), str(row["n"]), row["against_chance"]]
        )
    return table


def parity_rows(parity: dict[str, Any]) -> Rows:
    """How each file compared with the live model."""
    rows = [["file", "logits differ by at most", "same likeliest token", "tokens compared"]]
    for name, figures in parity.get("formats_compared", {}).items():
        rows.append(
            [
                name,
                f"{figures['max_logit_difference']:.2g}",
                f"{figures['top1_agreement']:.2%}",
                f"{figures['tokens_compared']:,}",
            ]
        )
    return rows


def versions(model: Model) -> str:
    """The libraries that trained it, by its checkpoint; else those that read it back."""
    found: dict[str, Any] = {}
    if model.checkpoint:
        found = read_json(model.checkpoint / "trainer_state.json").get("versions", {})
    compared = model.parity.get("formats_compared", {})
    if not found and compared:
        found = next(iter(compared.values())).get("read_by", {})
    return ", ".join(f"{name} {version}" for name, version in found.items() if version) or UNKNOWN


def table_or_nothing(rows: Rows) -> str:
    return text_table(rows) if len(rows) > 1 else ""


def said(value: Any) -> str:
    """A value, or that it is unknown."""
    return UNKNOWN if value is None else value_text(value)

"""What a run will do and what it did, in words."""

import itertools
from typing import Any

from genesis_hf.config import PretrainRecipe
from genesis_hf.modeling import GenesisConfig, model_config, parameter_count
from genesis_hf.training.distributed import use_bf16
from genesis_hf.training.schedule import learning_rate, schedule_plot
from genesis_hf.training.setup import accumulation_steps


def plan(recipe: PretrainRecipe) -> str:
    """What `--dry_run true` prints: the plan and the learning rate at named steps; needs neither data nor a GPU."""
    config = model_config(recipe.model)
    processes = recipe.num_processes or 1
    weight = sum(source.weight for source in recipe.sources)
    sources = [f"  {source.name:40} {source.weight / weight:7.2%}" for source in recipe.sources]
    last = recipe.last_step
    named = {1, recipe.warmup_steps or 1, last // 4, last // 2, 3 * last // 4, last, *recipe.extended_at}
    named |= {end + recipe.warmup_steps for end in recipe.extended_at} | {recipe.anneal_at or last}
    ends = [0, *recipe.extended_at, recipe.max_steps]
    named |= {(begin + recipe.warmup_steps + end) // 2 for begin, end in itertools.pairwise(ends) if end <= last}
    rule = [
        f"extended at       {', '.join(f'{end:,}' for end in recipe.extended_at)}: from there the rate warms up "
        f"again in {recipe.warmup_steps:,} steps, then decays to the next end"
    ]
    rates = [f"  step {step:>9,}  {learning_rate(step, recipe):.3e}" for step in sorted(named - {0})]
    return "\n".join(
        [
            describe(recipe, config, parameter_count(config), processes),
            "sources, by their share of the tokens",
            *sources,
            f"learning rate     {recipe.lr_scheduler_type}",
            *(rule if recipe.extended_at else []),
            *rates,
            schedule_plot(recipe),
        ]
    )


def describe(recipe: PretrainRecipe, config: GenesisConfig, parameters: int, num_processes: int) -> str:
    """A few lines about what the run will do."""
    accumulation = accumulation_steps(recipe, num_processes)
    batch = recipe.per_device_train_batch_size
    tokens = batch * accumulation * num_processes * recipe.sequence_length
    lines = [
        f"parameters        {parameters:,}",
        f"tokens per step   {tokens:,} ({batch} rows x {accumulation} micro-batches x {num_processes} processes x "
        f"{recipe.sequence_length} tokens)",
        f"total tokens      {tokens * recipe.last_step:,} ({recipe.last_step:,} steps, "
        f"{tokens * recipe.last_step / parameters:.1f} per parameter)",
        f"compute           {'bfloat16 over float32 weights' if use_bf16(recipe.bf16) else 'float32'}",
    ]
    return "\n".join(lines)


def shares(tokens: dict[str, int]) -> dict[str, float]:
    """Realised share of each source in the tokens so far."""
    total = max(1, sum(tokens.values()))
    return {name: round(count / total, 5) for name, count in tokens.items()}


def passes(stream_state: dict[str, Any]) -> str:
    """Whether anything was trained on twice, by the stream's own account."""
    again = [f"{name} in pass {epoch + 1}" for name, epoch in stream_state["epochs"].items() if epoch]
    return f"repeated sources: {', '.join(again)}" if again else "no document of any source came twice"


def packing_losses(records: dict[str, dict[str, int]], sequence_length: int) -> str:
    """What best-fit packing cost: the share of padding in the rows, and of documents that no row holds whole."""
    total = {kind: sum(counts.get(kind, 0) for counts in records.values()) for kind in ("padding", "rows", "truncated")}
    packed = sum(counts.get("packed", 0) for counts in records.values())
    padding, truncated = total["padding"] / (total["rows"] * sequence_length), total["truncated"] / packed
    return f"best_fit: {padding:.2%} padding, {truncated:.2%} of the documents longer than a row"

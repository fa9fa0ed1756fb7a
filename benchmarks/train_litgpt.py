"""litgpt's pretraining for train_speed.py: `litgpt.pretrain.setup` as it is, on the benchmark's shapes."""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from litgpt import Config
from litgpt.args import EvalArgs, LogArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader, IterableDataset

from genesis_hf.config import PretrainRecipe

Batches = Callable[[PretrainRecipe], Iterator[torch.Tensor]]


class Rows(IterableDataset):
    """Rows of length + 1 ids; the time at which each micro-batch's first row is asked for is noted."""

    def __init__(self, recipe: PretrainRecipe, batches: Batches, times: list[float]) -> None:
        self.recipe, self.size = recipe, recipe.per_device_train_batch_size
        self.batches, self.times = batches, times

    def __iter__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches(self.recipe):
            self.times.append(time.perf_counter())
            yield from torch.cat([batch, batch[:, :1]], dim=1)


class Data(DataModule):
    """Random rows, for training and for litgpt's look at its validation set."""

    def __init__(self, recipe: PretrainRecipe, batches: Batches, times: list[float]) -> None:
        super().__init__()
        self.rows, self.check = Rows(recipe, batches, times), Rows(recipe, batches, [])

    def connect(self, *_: Any, **__: Any) -> None:
        """Nothing to be told: the rows are ready."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.rows.size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.check, batch_size=self.rows.size)


def run(recipe: PretrainRecipe, batches: Batches) -> dict[str, Any]:
    """Seconds of each optimizer step."""
    model, accumulation = recipe.model, recipe.gradient_accumulation_steps
    config = Config(
        name="benchmark",
        block_size=recipe.sequence_length,
        vocab_size=model["vocab_size"],
        padded_vocab_size=model["vocab_size"],
        n_layer=model["num_hidden_layers"],
        n_head=model["num_attention_heads"],
        n_query_groups=model["num_key_value_heads"],
        n_embd=model["hidden_size"],
        intermediate_size=model["intermediate_size"],
        rotary_percentage=1.0,
        rope_base=int(model["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    sys.argv = ["litgpt", "benchmark"]  # which it reads again when it saves
    times: list[float] = []
    steps, rows = recipe.max_steps + 1, recipe.per_device_train_batch_size
    with tempfile.TemporaryDirectory() as folder:
        setup(
            "benchmark",
            model_config=config,
            out_dir=Path(folder) / "run",
            precision="bf16-mixed",
            data=Data(recipe, batches, times),
            train=TrainArgs(
                global_batch_size=rows * accumulation,
                micro_batch_size=rows,
                max_tokens=steps * accumulation * rows * recipe.sequence_length,
                max_norm=1.0,
                min_lr=3e-5,
                lr_warmup_steps=10,
                log_interval=10,
                save_interval=10**9,
                tie_embeddings=True,
            ),
            eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
            log=LogArgs(),
            logger_name="csv",
            devices=1,
        )
    begins = times[::accumulation]
    return {"seconds": [later - now for now, later in itertools.pairwise(begins)][: recipe.max_steps]}

"""What is asked of the planner, beside the pretraining recipe."""

from dataclasses import dataclass
from typing import Literal

from genesis_hf.config import check_positive, setting
from genesis_hf.errors import UserError

NUMBERS = (
    "memory_gb",
    "bf16_tflops",
    "bandwidth_gb_s",
    "interconnect_gb_s",
    "power_w",
    "mfu",
    "price_per_hour",
    "price_per_kwh",
)

TRANSFORMERS = "transformers"


@dataclass
class PlanRecipe:
    """`scripts/plan.py`, beside the pretraining recipe that it plans."""

    device: str | None = setting(None, "'2x RTX 4090', 'H100', cpu …; null: what this machine has")
    accelerate_config: str | None = setting(
        None, "the launch's YAML, or single, ddp, fsdp1, fsdp2, hsdp; null: fsdp2 for several devices"
    )
    num_machines: int = setting(1, "machines that the devices are spread over")
    memory_gb: float | None = setting(None, "memory of a card, in GiB as makers count; for one that isn't in the table")
    bf16_tflops: float | None = setting(None, "… its dense bf16 products, 1e12 a second, fp32 accumulation")
    bandwidth_gb_s: float | None = setting(None, "… bandwidth of its memory")
    interconnect_gb_s: float | None = setting(None, "… what its exchange with others reaches in one direction")
    power_w: float | None = setting(None, "… its power limit")
    mfu: float | None = setting(None, "model FLOPs utilisation of the whole run, measured; in place of the estimate")
    price_per_hour: float | None = setting(None, "price of one device for an hour, in any currency")
    price_per_kwh: float | None = setting(None, "price of electricity, in any currency")
    fsdp_reshard_after_forward: bool | None = setting(
        None, "whether weights are gathered twice; null: as the YAML says"
    )
    program: Literal["genesis_hf", "transformers"] = setting(
        "genesis_hf",
        "transformers: a plain loop over LlamaForCausalLM under Accelerate, with the defaults of both: the loss on "
        "whole logits in fp32, documents that see each other, FSDP1 that gathers fp32 weights twice a micro-batch",
    )
    output_file: str | None = setting(None, "also write the plan here: .md, .html or .json")

    def __post_init__(self) -> None:
        check_positive(self, "num_machines")
        for name in NUMBERS:
            if getattr(self, name) is not None:
                check_positive(self, name)
        if self.mfu is not None and self.mfu >= 1:
            raise UserError(f"mfu is a share of the peak, such as 0.4, not {self.mfu}")
        if self.output_file and not self.output_file.endswith((".md", ".html", ".json")):
            raise UserError(f"output_file {self.output_file}: its name must end with .md, .html or .json")

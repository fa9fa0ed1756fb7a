"""A Llama folder as ONNX with a KV cache, in the layout that transformers.js and ONNX Runtime GenAI read.

Inputs `input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key` and `.value` (batch_size, KV heads,
past_sequence_length, head size); outputs `logits`, `present.N.key` and `.value`. All of them but ids are fp32 in the
fp16 file as well, so that one program runs both.
"""

import importlib.util
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.files import edit_json, read_json
from genesis_hf.tokenizer import SPACE

OPSET = 20
LARGEST_FILE = 2**31 - 2**20
"""protobuf ends at 2 GiB: weights beyond stand in a file of their own."""

FILES = {"float32": "onnx/model.onnx", "float16": "onnx/model_fp16.onnx"}


def check_onnx() -> None:
    """Raise `UserError` unless what writes and reads ONNX is installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"formats: onnx needs {', '.join(missing)}; pip install 'genesis-hf[onnx]'")


class WithCache(nn.Module):
    """Llama with its cache as plain tensors, in and out."""

    def __init__(self, llama: LlamaForCausalLM) -> None:
        super().__init__()
        self.llama = llama

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        found = self.llama(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, [(layer.keys, layer.values) for layer in found.past_key_values.layers]


def write_onnx(folder: Path) -> dict[str, Path]:
    """Write `onnx/model.onnx` and `onnx/model_fp16.onnx` into a Llama folder, from its weights.

    Returns:
        the two files, by their dtype.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    (folder / "onnx").mkdir(exist_ok=True)
    found = as_onnx(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    save(onnx, found, folder / FILES["float32"])
    found = convert_float_to_float16(found, keep_io_types=True, disable_shape_infer=True)
    sort_nodes(found.graph)
    save(onnx, found, folder / FILES["float16"])
    edit_json(folder / "config.json", lambda config: tell_transformers_js(config, folder))
    write_genai_files(folder)
    return {dtype: folder / name for dtype, name in FILES.items()}


@torch.no_grad()
def as_onnx(llama: LlamaForCausalLM) -> Any:
    """The model as an onnx.ModelProto; sizes of batch, new tokens and past are free."""
    config = llama.config
    layers, heads, size = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    batch, length, past_length = 2, 3, 5  # none of them 0 or 1, which the exporter would hold fixed
    past = [tuple(torch.zeros(batch, heads, past_length, size) for _ in range(2)) for _ in range(layers)]
    positions = torch.arange(past_length, past_length + length).repeat(batch, 1)
    example = (torch.zeros_like(positions), torch.ones(batch, past_length + length).long(), positions, past)
    both = [f"{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            WithCache(llama).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in both)],
            output_names=["logits", *(f"present.{name}" for name in both)],
            dynamic_shapes=(
                {0: "batch_size", 1: "sequence_length"},
                {0: "batch_size", 1: "total_sequence_length"},
                {0: "batch_size", 1: "sequence_length"},
                [({0: "batch_size", 2: "past_sequence_length"},) * 2 for _ in range(layers)],
            ),
        )
    return without_origins(program.model_proto)


def without_origins(model: Any) -> Any:
    """The model without the lines of Python that each node came from: half of a small model's file."""
    for part in [*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def save(onnx: Any, model: Any, path: Path) -> None:
    """One file, or beyond `LARGEST_FILE` one for the graph and NAME.onnx_data for the weights."""
    if model.ByteSize() < LARGEST_FILE:
        onnx.save_model(model, path)
        return
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.name}_data",
        size_threshold=1024,
        convert_attribute=False,
    )


def sort_nodes(graph: Any) -> None:
    """Put each node after those that make its inputs; the conversion to fp16 appends its casts at the end."""
    made = {value.name for value in [*graph.input, *graph.initializer]} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in made for name in node.input):
                ordered.append(node)
                made.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"{later[0].name}: no order of the nodes has its inputs before it")
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def tell_transformers_js(config: dict[str, Any], folder: Path) -> None:
    """Which files of weights lie beside the graphs; transformers.js does not look for them."""
    external = {Path(name).name: 1 for name in FILES.values() if (folder / f"{name}_data").exists()}
    config["transformers.js_config"] = {"kv_cache_dtype": {"fp16": "float32"}}
    if external:
        config["transformers.js_config"]["use_external_data_format"] = external


def write_genai_files(folder: Path) -> None:
    """Make `onnx/` a folder that ONNX Runtime GenAI reads: its config and a tokenizer beside the graphs.

    GenAI 0.18 splits text into words before its spaces have become `SPACE`: looked for there, they aren't found, and
    text falls apart into letters.
    """
    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    tokenizer = read_json(folder / "tokenizer.json")
    split = tokenizer.get("pre_tokenizer") or {}
    if split.get("type") == "Split" and "Regex" in split["pattern"]:
        split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(SPACE, " ")
    files = {"genai_config.json": genai_config(config, generation), "tokenizer.json": tokenizer}
    for name, values in files.items():
        write_text(folder / "onnx" / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    shutil.copyfile(folder / "tokenizer_config.json", folder / "onnx/tokenizer_config.json")


def genai_config(config: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """What ONNX Runtime GenAI reads, of the two configs of a Llama folder.

    https://onnxruntime.ai/docs/genai/reference/config.html. The cache grows by concatenation, so that past and present
    share no buffer.
    """
    both = ("key", "value")
    decoder = {
        "filename": Path(FILES["float32"]).name,
        "session_options": {"provider_options": []},
        "hidden_size": config["hidden_size"],
        "head_size": config["head_dim"],
        **{key: config[key] for key in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers")},
        "inputs": {
            **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
            **{f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in both},
        },
        "outputs": {"logits": "logits", **{f"present_{kind}_names": f"present.%d.{kind}" for kind in both}},
    }
    tokens = {name: generation.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    context = config["max_position_embeddings"]
    return {
        "model": {
            "type": "llama",
            **{name: found for name, found in tokens.items() if found is not None},
            "vocab_size": config["vocab_size"],
            "context_length": context,
            "decoder": decoder,
        },
        "search": {"max_length": context, "do_sample": False, "past_present_share_buffer": False},
    }

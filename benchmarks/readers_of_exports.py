"""Seven programs that know nothing of this project read an export and continue 20 prompts as the live model does.

    python benchmarks/readers_of_exports.py --work_dir runs/readers [--readers transformers_4,onnxruntime]

A tied and an untied small model learn a little text, are exported in every format, and each reader, from a text prompt
to new text, with its own tokenizer and its defaults but greedy, is compared with the live model. Where each is looked
for, and how to install it: docs/export.md.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from data_text import make_text, make_tokenizer
from transformers import PreTrainedTokenizerFast

from genesis_hf import GenesisConfig, GenesisForCausalLM
from genesis_hf.checkpoint.folders import checkpoint_folder
from genesis_hf.checkpoint.save import save_checkpoint
from genesis_hf.config import Source, parse_recipe, setting, write_text
from genesis_hf.data.readers import read_documents
from genesis_hf.errors import UserError, report_user_errors
from genesis_hf.export import export_checkpoint
from genesis_hf.exporting import reading
from genesis_hf.tokenizer import encode_documents, load_tokenizer

NEW_TOKENS = 16
PROMPTS = 20

MODEL = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

# Programs of the readers: folder, file of prompts and file for the new texts; the first line printed tells versions.
TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompts, texts = sys.argv[1:]
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
new = []
for prompt in json.load(open(prompts)):
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0]
    new.append(tokenizer.decode(ids[inputs["input_ids"].shape[1]:], skip_special_tokens=True))
json.dump(new, open(texts, "w"))
"""

ONNX = """
import importlib.util, json, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("reading", READING)
reading = importlib.util.module_from_spec(spec); sys.modules["reading"] = reading; spec.loader.exec_module(reading)
folder, prompts, texts = sys.argv[1:]
reader = reading.OnnxReader(Path(folder, "onnx/model.onnx"))
print(", ".join(" ".join(pair) for pair in reader.versions().items()))
stop = json.load(open(Path(folder, "generation_config.json")))["eos_token_id"]
new = []
for prompt in json.load(open(prompts)):
    ids, (logits, cache) = [], reader.step([reader.encode(prompt)], None)
    while len(ids) < NEW and (best := int(logits[0, -1].argmax())) != stop:
        ids.append(best)
        logits, cache = reader.step([[best]], cache)
    new.append(reader.tokenizer.decode(ids))
json.dump(new, open(texts, "w"))
"""

GENAI = """
import json, sys, onnxruntime, onnxruntime_genai
folder, prompts, texts = sys.argv[1:]
print(f"onnxruntime-genai {onnxruntime_genai.__version__}, onnxruntime {onnxruntime.__version__}")
model = onnxruntime_genai.Model(f"{folder}/onnx")
tokenizer = onnxruntime_genai.Tokenizer(model)
stop = json.load(open(f"{folder}/generation_config.json"))["eos_token_id"]
new = []
for prompt in json.load(open(prompts)):
    ids = tokenizer.encode(prompt)
    settings = onnxruntime_genai.GeneratorParams(model)
    settings.set_search_options(max_length=len(ids) + NEW)
    generator = onnxruntime_genai.Generator(model, settings)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)[len(ids):]]
    new.append(tokenizer.decode([token for token in found if token != stop]))
json.dump(new, open(texts, "w"))
"""

LLAMA_CPP = """
import json, sys, llama_cpp
folder, prompts, texts = sys.argv[1:]
print(f"llama-cpp-python {llama_cpp.__version__}")
llama = llama_cpp.Llama(f"{folder}/gguf/model-f32.gguf", n_ctx=256, n_threads=1, verbose=False)
new = [
    llama.create_completion(prompt, max_tokens=NEW, temperature=0)["choices"][0]["text"]
    for prompt in json.load(open(prompts))
]
json.dump(new, open(texts, "w"))
"""

TRANSFORMERS_JS = """
import { readFileSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { env, AutoTokenizer, AutoModelForCausalLM } from "@huggingface/transformers";
const [folder, prompts, texts] = process.argv.slice(2);
console.log(`transformers.js ${env.version}, Node ${process.version}`);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModelForCausalLM.from_pretrained(basename(folder), { dtype: process.env.DTYPE ?? "fp32" });
const found = [];
for (const prompt of JSON.parse(readFileSync(prompts))) {
  const inputs = tokenizer(prompt);
  const ids = await model.generate({ ...inputs, max_new_tokens: NEW, do_sample: false });
  const rows = ids.tolist()[0].slice(inputs.input_ids.dims[1]).map(Number);
  found.push(tokenizer.decode(rows, { skip_special_tokens: true, clean_up_tokenization_spaces: false }));
}
writeFileSync(texts, JSON.stringify(found));
"""

TASK = """
task: continue_greedily
dataset_path: json
dataset_kwargs: {data_files: {test: PROMPTS}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: [], max_gen_toks: NEW, do_sample: false}
metric_list: [{metric: exact_match}]
"""

READERS = (
    *("transformers_5", "transformers_4", "lm_eval", "onnxruntime", "onnxruntime_genai", "transformers_js"),
    "llama_cpp",
)


@dataclass
class ReaderSettings:
    """`benchmarks/readers_of_exports.py`"""

    work_dir: str = setting("runs/readers", "folder for models and exports")
    readers: list[str] = setting(list(READERS))
    transformers_4: str = setting("runs/readers/hf4/bin/python", "Python with transformers 4.57")
    lm_eval: str = setting("runs/readers/hf4/bin/lm_eval", "the command")
    onnxruntime_genai: str = setting("runs/readers/genai/bin/python", "Python with onnxruntime-genai")
    node_folder: str = setting("runs/readers/node", "folder with node_modules/@huggingface/transformers")
    steps: int = setting(300, "of training for each model")
    seed: int = 0


def main() -> None:
    (settings,) = parse_recipe(ReaderSettings)
    work = Path(settings.work_dir).resolve()
    text = make_text(None, 2, settings.seed, str(work))
    documents = list(read_documents(Source("text", paths=text["files"])))
    tokenizer = load_tokenizer(make_tokenizer(text["files"], MODEL["vocab_size"]))
    prompts = choose_prompts(documents)
    rows = []
    for tied in (True, False):
        name = "tied" if tied else "untied"
        model = train(tied, tokenizer, documents, settings.steps, settings.seed)
        folder = export(model, tokenizer, work / name, documents[-4:])
        wanted = live_texts(model, tokenizer, prompts)
        write_text(work / f"prompts-{name}.json", json.dumps(prompts))
        for reader in settings.readers:
            started = time.monotonic()
            try:
                versions, texts = read(reader, settings, folder, work / f"prompts-{name}.json", work / reader)
            except UserError as error:
                print(f"{name} {reader}: {error}", file=sys.stderr)
                rows.append((reader, name, "could not be run", "?"))
                continue
            same = sum(one.rstrip("\n") == other.rstrip("\n") for one, other in zip(texts, wanted, strict=True))
            rows.append((reader, name, versions, f"{same}/{len(wanted)}"))
            print(f"{name} {reader}: {same}/{len(wanted)} in {time.monotonic() - started:.0f} s", file=sys.stderr)
            for one, other in zip(texts, wanted, strict=True):
                if one.rstrip("\n") != other.rstrip("\n"):
                    print(f"  {one!r} is not {other!r}", file=sys.stderr)
    print("| reader | model | versions | same greedy text |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    if any(row[3] != f"{PROMPTS}/{PROMPTS}" for row in rows):
        raise UserError("not every reader gives the live model's text")


# ---------------------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------------------


def train(
    tied: bool, tokenizer: PreTrainedTokenizerFast, documents: list[str], steps: int, seed: int
) -> GenesisForCausalLM:
    """A model that knows enough for plain text and clear preferences."""
    torch.manual_seed(seed)
    config = GenesisConfig(**{**MODEL, "vocab_size": -(-len(tokenizer) // 64) * 64}, tie_word_embeddings=tied)
    model = GenesisForCausalLM(config)
    stream = torch.tensor([token for ids in encode_documents(tokenizer, documents) for token in [*ids, 2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20, 1.05 - step / steps)
        starts = torch.randint(0, len(stream) - 128, (16,))
        ids = torch.stack([stream[start : start + 128] for start in starts])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{'tied' if tied else 'untied'}: loss {loss:.3f} after {steps} steps", file=sys.stderr)
    return model.eval()


def export(model: GenesisForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, held_out: list[str]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    optimizers = [torch.optim.AdamW(model.parameters())]
    save_checkpoint(checkpoint_folder(folder, 1), model, optimizers, {"step": 1}, "", tokenizer)
    export_checkpoint(folder, folder / "export", formats=["llama", "onnx", "gguf", "pt"], held_out=held_out)
    return folder / "export"


def choose_prompts(documents: list[str]) -> list[str]:
    """The beginnings of lines of several words."""
    lines = [line.strip() for document in documents for line in document.splitlines()]
    lines = [line for line in lines if len(line.split()) > 8]
    return [" ".join(line.split()[:5]) for line in lines[:: max(1, len(lines) // PROMPTS)]][:PROMPTS]


def live_texts(model: GenesisForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """New text after each prompt by the model in memory, up to its stop token."""
    new = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        new.append(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))
    return new


# ---------------------------------------------------------------------------------------------------------
# The readers
# ---------------------------------------------------------------------------------------------------------


def read(reader: str, settings: ReaderSettings, folder: Path, prompts: Path, scratch: Path) -> tuple[str, list[str]]:
    """The versions and the new texts of a reader."""
    scratch.mkdir(parents=True, exist_ok=True)
    texts = scratch / "texts.json"
    texts.unlink(missing_ok=True)
    if reader == "lm_eval":
        return read_with_lm_eval(settings.lm_eval, folder, prompts, scratch)
    if reader == "transformers_js":
        program = Path(settings.node_folder).resolve() / "continue.mjs"
        write_text(program, filled(TRANSFORMERS_JS))
        command = ["node", program]
    else:
        programs = {"onnxruntime": ONNX, "onnxruntime_genai": GENAI, "llama_cpp": LLAMA_CPP}
        python = getattr(settings, reader, sys.executable)
        command = [python, "-I", "-c", filled(programs.get(reader, TRANSFORMERS))]
    output = run([*command, folder, prompts, texts], scratch)
    return output.splitlines()[0], json.loads(texts.read_text(encoding="utf-8"))


def filled(program: str) -> str:
    return program.replace("NEW", str(NEW_TOKENS)).replace("READING", repr(reading.__file__))


def read_with_lm_eval(command: str, folder: Path, prompts: Path, scratch: Path) -> tuple[str, list[str]]:
    """A task of our prompts, from lm_eval's own command line; the texts are in the samples that it logs."""
    shutil.rmtree(scratch)
    scratch.mkdir()
    lines = [json.dumps({"prompt": prompt, "answer": "?"}) for prompt in json.loads(prompts.read_text())]
    write_text(scratch / "prompts.jsonl", "\n".join(lines) + "\n")
    task = TASK.replace("NEW", str(NEW_TOKENS)).replace("PROMPTS", str(scratch / "prompts.jsonl"))
    write_text(scratch / "continue_greedily.yaml", task)
    words = f"--model hf --model_args pretrained={folder},dtype=float32 --device cpu --tasks continue_greedily"
    options = f"--include_path {scratch} --output_path {scratch}/out --log_samples"
    run([command, *words.split(), *options.split()], scratch, HF_DATASETS_CACHE=str(scratch / "cache"))
    (samples,) = (scratch / "out").rglob("samples_*.jsonl")
    (results,) = (scratch / "out").rglob("results_*.json")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    found = json.loads(results.read_text())
    versions = f"lm_eval {found['lm_eval_version']}, transformers {found['transformers_version']}"
    return versions, [row["resps"][0][0] for row in rows]


def run(command: list, folder: Path, **environment: str) -> str:
    """A command's output.

    Raises:
        UserError: it isn't there, or failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **environment}
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{words[0]}: not installed") from None
    if done.returncode:
        raise UserError(f"{words[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


if __name__ == "__main__":
    with report_user_errors():
        main()

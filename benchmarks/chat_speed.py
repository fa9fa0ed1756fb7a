"""Preparation of conversations: ours beside TRL's own on the same rows, one core, in turns; the start from the cache.

    python benchmarks/chat_speed.py --paths [chats/*.jsonl] [--num_examples 10000] [--repetitions 3]

Both begin with the file's rows and end with token ids and labels on disk, mapped into memory. See benchmarks/README.md.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1", TQDM_DISABLE="1")

from datasets import Dataset
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from genesis_hf.chat import prepare_tokenizer
from genesis_hf.config import ConversationSource, Source, TokenizerRecipe, parse_recipe, setting, write_text
from genesis_hf.conversations.checks import Fault
from genesis_hf.conversations.mixture import prepare_conversations
from genesis_hf.conversations.packing import PackedConversations
from genesis_hf.conversations.rows import read_rows
from genesis_hf.conversations.shapes import to_messages
from genesis_hf.errors import report_user_errors
from genesis_hf.tokenizer import load_tokenizer
from genesis_hf.tokenizer_training import build_tokenizer


@dataclass
class ChatSpeedSettings:
    """`benchmarks/chat_speed.py`"""

    paths: list[str] = setting(help="conversations, in any shape")
    num_examples: int = setting(10_000, "conversations used, at most; those that both can read")
    tokenizer: str | None = setting(None, "its folder; null: one of 8,192 pieces is trained on the conversations")
    max_length: int = setting(2048)
    repetitions: int = setting(3, "the two taking turns; figures are medians")
    work_dir: str = setting("runs/chat_speed", "folder for rows, tokenizer and caches; emptied")
    output_file: str | None = setting(None, "all figures as .json")


def main() -> None:
    (settings,) = parse_recipe(ChatSpeedSettings)
    folder = Path(settings.work_dir)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    count = write_conversations(settings, folder / "rows.jsonl")
    tokenizer = settings.tokenizer or train_tokenizer(folder)
    seconds: dict[str, list[float]] = {"ours": [], "TRL": []}
    starts, tokens = [], {}
    for turn in tqdm(range(settings.repetitions), desc="measuring"):
        ours = in_new_process(prepare_ours, settings, folder, tokenizer, turn)
        seconds["ours"].append(ours["seconds"])
        tokens["ours"], rows = ours["tokens"], ours["packed_rows"]
        starts.append(in_new_process(prepare_ours, settings, folder, tokenizer, turn)["seconds"])
        theirs = in_new_process(prepare_trl, settings, folder, tokenizer, turn)
        seconds["TRL"].append(theirs["seconds"])
        tokens["TRL"] = theirs["tokens"]
    speed = {name: count / statistics.median(each) for name, each in seconds.items()}
    figures = {
        "conversations": count, "tokens": tokens, "seconds": seconds, "conversations_per_second": speed,
        "ratio": speed["ours"] / speed["TRL"], "start_from_cache_seconds": starts, "packed_rows": rows,
    }  # fmt: skip
    print(f"{count:,} conversations; {tokens['ours']:,} tokens of ours, {tokens['TRL']:,} of TRL's; one core")
    for name, each in speed.items():
        print(f"  {name:5} {each:9,.0f} conversations/s  ({', '.join(f'{s:.2f}' for s in seconds[name])} s)")
    print(f"  ratio {figures['ratio']:9.2f}")
    print(f"from the cache, packed into {rows:,} rows: {statistics.median(starts):.3f} s")
    if settings.output_file:
        write_text(settings.output_file, json.dumps(figures, indent=2) + "\n")


def write_conversations(settings: ChatSpeedSettings, path: Path) -> int:
    """The conversations as messages, which both read; how many."""
    count, seen = 0, set()
    with open(path, "w", encoding="utf-8") as file:
        for _, row in iter(read_rows(ConversationSource(name="chats", paths=settings.paths))):
            try:
                line = json.dumps({"messages": to_messages(row)}, ensure_ascii=False)
            except Fault:
                continue
            if line not in seen and count < settings.num_examples:
                seen.add(line)
                file.write(line + "\n")
                count += 1
    return count


def train_tokenizer(folder: Path) -> str:
    text = folder / "text.jsonl"
    with open(folder / "rows.jsonl", encoding="utf-8") as rows, open(text, "w", encoding="utf-8") as file:
        for row in rows:
            content = "\n".join(message["content"] for message in json.loads(row)["messages"])
            file.write(json.dumps({"text": content}, ensure_ascii=False) + "\n")
    source = Source(name="chats", paths=[str(text)])
    build_tokenizer(TokenizerRecipe(output_dir=str(folder / "tokenizer"), vocab_size=8192, sources=[source]))
    return str(folder / "tokenizer")


def in_new_process(task, *arguments) -> dict:
    """The task's result, from a process on one core."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=on_one_core) as pool:
        return pool.apply(task, arguments)


def on_one_core() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])


def chat_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(folder)
    prepare_tokenizer(tokenizer, "chatml")
    return tokenizer


def prepare_ours(settings: ChatSpeedSettings, folder: Path, tokenizer_dir: str, turn: int) -> dict:
    """From the cache where the turn's is there."""
    tokenizer = chat_tokenizer(tokenizer_dir)
    recipe = SimpleNamespace(
        overlong="tokens", drop_duplicates=True, max_bad_share=0.0, cache_dir=str(folder / f"cache-{turn}")
    )
    source = ConversationSource(name="chats", paths=[str(folder / "rows.jsonl")])
    start = time.perf_counter()
    dataset, (report,) = prepare_conversations(tokenizer, [source], settings.max_length, recipe)
    packed = PackedConversations(dataset, settings.max_length)
    packed[0]
    return {"seconds": time.perf_counter() - start, "tokens": report.tokens, "packed_rows": len(packed)}


def prepare_trl(settings: ChatSpeedSettings, folder: Path, tokenizer_dir: str, turn: int) -> dict:
    """What SFTTrainer does when it is made, with masks of the assistant's turns."""
    tokenizer = chat_tokenizer(tokenizer_dir)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to=[], max_length=settings.max_length,
        assistant_only_loss=True, disable_tqdm=True,
    )  # fmt: skip
    start = time.perf_counter()
    dataset = Dataset.from_json(str(folder / "rows.jsonl"), cache_dir=str(folder / f"trl-{turn}"))
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(len(ids) for ids in trainer.train_dataset["input_ids"])}


if __name__ == "__main__":
    with report_user_errors():
        main()

"""How busy synthesis keeps a server that takes 200 ms an answer, and whether memory grows with the number of records.

    python benchmarks/synthesis_speed.py [--num_conversations 5000 --latency 0.2 --concurrency 64]
    python benchmarks/synthesis_speed.py --num_conversations 100000 --latency 0 --revisions 0

The server is tests/chat_server.py in a process of its own. See benchmarks/README.md.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import psutil

from genesis_hf.config import parse_recipe, setting, write_text
from genesis_hf.errors import report_user_errors
from genesis_hf.synthesis.constitution import load_constitution
from genesis_hf.synthesis.recipe import ProviderSettings, SynthesizeRecipe
from genesis_hf.synthesis.records import finished_numbers
from genesis_hf.synthesis.synthesize import RECORDS, synthesize

SERVER = Path(__file__).parents[1] / "tests" / "chat_server.py"
CONSTITUTION = {
    "principles": [{"name": "helpful", "text": "Be helpful. " * 50}],
    "categories": [{"name": "all", "share": 1.0, "templates": ["How does {topic} work for {persona}?"]}],
    "topics": [f"thing {number}" for number in range(1000)],
    "personas": [f"person {number}" for number in range(1000)],
}
WARM_UP = 0.1
"""Share of the run before the server begins to count, and the memory is first looked at."""


@dataclass
class SynthesisSpeedSettings:
    """`benchmarks/synthesis_speed.py`"""

    num_conversations: int = setting(5000)
    latency: float = setting(0.2, "seconds that the server takes to answer")
    concurrency: int = setting(64, "calls at once")
    revisions: int = setting(0, "rounds of critique and revision")
    work_dir: str = setting("runs/synthesis_speed", "folder for the records; emptied")
    output_file: str | None = setting(None, "all figures as .json")


def main() -> None:
    (settings,) = parse_recipe(SynthesisSpeedSettings)
    shutil.rmtree(settings.work_dir, ignore_errors=True)
    command = [sys.executable, str(SERVER), "--latency", str(settings.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            figures = measure(settings, server.stdout.readline().strip())
        finally:
            server.kill()
    for name, value in figures.items():
        print(f"{name:28} {value:,.3f}")
    if settings.output_file:
        write_text(settings.output_file, json.dumps(figures, indent=1) + "\n")


def measure(settings: SynthesisSpeedSettings, base_url: str) -> dict[str, float]:
    """Figures of a run; the server's are those after the warm-up."""
    recipe = SynthesizeRecipe(
        output_dir=settings.work_dir,
        constitution=CONSTITUTION,
        provider=ProviderSettings(model="scripted", base_url=base_url, concurrency=settings.concurrency, max_tokens=64),
        num_conversations=settings.num_conversations,
        revisions=settings.revisions,
    )
    process, done = psutil.Process(), Event()
    memory: dict[str, float] = {}
    watcher = Thread(target=watch, args=(settings, base_url, process, memory, done))
    watcher.start()
    cpu, began = time.process_time(), time.perf_counter()
    try:
        synthesize(recipe, load_constitution(CONSTITUTION))
        seconds = time.perf_counter() - began
        stats = get(f"{base_url.removesuffix('/v1')}/stats")
        memory["MiB at the end"] = process.memory_info().rss / 2**20
    finally:
        done.set()
        watcher.join()
    return {
        "conversations": len(finished_numbers(Path(settings.work_dir) / RECORDS)),
        "seconds": seconds,
        "CPU ms a call, ours": 1000 * (time.process_time() - cpu) / stats["answers"],
        "calls a second": stats["requests"] / stats["seconds"],
        "mean calls in the air": stats["mean_in_air"],
        "busy": stats["mean_in_air"] / settings.concurrency,
        **memory,
    }


def watch(
    settings: SynthesisSpeedSettings, base_url: str, process: psutil.Process, memory: dict[str, float], done: Event
) -> None:
    """After the warm-up, look at the memory and let the server count anew."""
    records = Path(settings.work_dir) / RECORDS
    wanted = WARM_UP * settings.num_conversations
    while not done.wait(0.1):
        if records.exists() and records.read_bytes().count(b"\n") >= wanted:
            memory[f"MiB after {WARM_UP:.0%}"] = process.memory_info().rss / 2**20
            get(f"{base_url.removesuffix('/v1')}/reset")
            return


def get(url: str) -> dict[str, float]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
        return json.load(answer)


if __name__ == "__main__":
    with report_user_errors():
        main()

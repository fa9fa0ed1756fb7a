"""Many people at one playground: how long each waits, how many are told to come again, what it takes of memory.

    python benchmarks/playground_load.py runs/demo [--users 20] [--questions 5] [--leave 0.2] [-- --concurrency 2 …]

Each user asks one question after another, of models drawn by a seed, as the page does; now and then one closes the
browser amid an answer. What follows `--` goes to scripts/playground.py.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

SCRIPT = Path(__file__).parents[1] / "scripts" / "playground.py"
QUESTIONS = ["What does os.path.join do?", "def read_lines(path):", "Once upon a time", "What is a prime number?"]


@dataclass
class Figures:
    """What all users saw; seconds, and outcomes by name."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    outcomes: Counter = field(default_factory=Counter)


@dataclass
class User:
    """Somebody with a browser."""

    client: httpx.Client
    function: int
    models: list[str]
    session: str

    def ask(self, random: random.Random, tokens: int) -> httpx.Response:
        """Put a question; whether it was taken."""
        data = [random.choice(QUESTIONS), [], random.choice(self.models), "auto", "", 0.7, 0.95, 0, 1, tokens, ""]
        body = {"data": data, "fn_index": self.function, "session_hash": self.session}
        return self.client.post("/gradio_api/queue/join", json=body)

    def messages(self) -> Iterator[dict]:
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


def visit(address: str, config: dict, number: int, options: argparse.Namespace, figures: Figures) -> None:
    """All that one user does."""
    say = next(function for function in config["dependencies"] if function["api_name"] == "say")
    choices = next(c["props"]["choices"] for c in config["components"] if c["props"].get("elem_id") == "model")
    drawn = random.Random(number)
    with httpx.Client(base_url=address, timeout=600, trust_env=False) as client:
        for question in range(options.questions):
            user = User(client, say["id"], [key for _, key in choices], f"user{number}-{question}")
            begun, first = time.monotonic(), None
            if user.ask(drawn, options.max_new_tokens).status_code == 503:
                figures.outcomes["told to come again"] += 1
                continue
            leaves, ended = drawn.random() < options.leave, "cut off"
            for message in user.messages():
                if message["msg"] == "process_generating":
                    # The first one says that the model is being loaded.
                    shown = json.dumps(message["output"].get("data"))
                    first = first or ("tokens/s" in shown and time.monotonic() - begun) or None
                    if first and leaves:
                        ended = "left amid the answer"
                        break
                if message["msg"] == "process_completed":
                    ended = "answered" if message["success"] else "failed"
            figures.outcomes[ended] += 1
            if ended == "answered":
                figures.whole.append(time.monotonic() - begun)
                figures.first += [first] if first else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", help="a folder that holds runs")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--leave", type=float, default=0.2, help="share of answers amid which the browser is closed")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])

    server = subprocess.Popen(
        [sys.executable, SCRIPT, options.models, "--port", "0", *arguments[end + 1 :]],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        print(line, end="")
        process, peak, done = psutil.Process(server.pid), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                peak[0] = max(peak[0], process.memory_info().rss)

        config = httpx.get(f"{address}/config", trust_env=False).json()
        before = process.memory_info().rss
        rounds = []
        threading.Thread(target=watch, daemon=True).start()
        for _ in range(3):  # of equal work: what grows from one to the next would grow for ever
            figures, begun = Figures(), time.monotonic()
            users = [
                threading.Thread(target=visit, args=(address, config, number, options, figures))
                for number in range(options.users)
            ]
            for user in users:
                user.start()
            for user in users:
                user.join()
            rounds.append((time.monotonic() - begun, figures, process.memory_info().rss))
        done.set()
        print(f"memory before the first question: {before / 2**20:,.0f} MiB; highest: {peak[0] / 2**20:,.0f} MiB")
        for number, (seconds, figures, memory) in enumerate(rounds, 1):
            print(
                f"round {number}: {seconds:.0f} s; "
                + ", ".join(f"{count} {name}" for name, count in figures.outcomes.most_common())
                + f"; first token {spread(figures.first)}; whole answer {spread(figures.whole)}; "
                f"memory {memory / 2**20:,.0f} MiB"
            )
    finally:
        server.terminate()
        server.wait(10)


def spread(seconds: list[float]) -> str:
    """Median and the slowest of twenty."""
    if len(seconds) < 2:
        return "unknown"
    return f"{statistics.median(seconds):.1f} s (19 of 20 within {statistics.quantiles(seconds, n=20)[-1]:.1f} s)"


if __name__ == "__main__":
    main()

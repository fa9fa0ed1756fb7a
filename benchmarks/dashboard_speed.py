"""How long the live page takes to open over a long run, in headless Chromium, and what memory its server needs.

python benchmarks/dashboard_speed.py [--records 500000] [--sources 6] [--repetitions 5]

Writes a metrics.jsonl of that many records, some 700 bytes each with six sources, starts scripts/dashboard.py over it,
and opens the page: once while the file is being read for the first time, then again and again. Each time a fresh
browser's page with nothing cached. See benchmarks/README.md.
"""

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import CHROMIUM  # noqa: E402

CURVES = 4
"""Panels that a screen of 1280 × 900 shows, with what is drawn ahead."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--sources", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output_file", help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = write_metrics(Path(folder) / "run/metrics.jsonl", arguments.records, arguments.sources)
        print(f"{arguments.records:,} records, {size / 1e6:,.0f} MB")
        figures = {"records": arguments.records, "bytes": size, **measure(folder, arguments.repetitions)}
    for name, value in figures.items():
        print(f"{name:44} {value:,.2f}" if isinstance(value, float) else f"{name:44} {value:,}")
    if arguments.output_file:
        Path(arguments.output_file).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def write_metrics(path: Path, records: int, sources: int) -> int:
    """A pretraining's metrics.jsonl with a spike every 50,000 records; returns its bytes."""
    generator = random.Random(0)
    names = [f"source-{index}" for index in range(sources)]
    path.parent.mkdir()
    with open(path, "w", encoding="utf-8") as file:
        for step in tqdm(range(1, records + 1), desc="metrics.jsonl", unit="record", mininterval=1):
            loss = 2 + 8 * step**-0.25 + generator.gauss(0, 0.03) + (4 if step % 50_000 == 0 else 0)
            record = {
                "step": step,
                "loss": loss,
                "grad_norm": abs(generator.gauss(0.4, 0.05)),
                "learning_rate": 1e-4 * (1 - step / records) + 1e-5,
                "tokens_seen": step * 524_288,
                "tokens_per_second": round(19_000 + generator.gauss(0, 150), 1),
                "mfu": 0.43 + generator.gauss(0, 0.003),
                "memory_gib": 19.8,
                "data_wait_share": 0.0001,
                "save_stall_seconds": 0.0,
                "skipped_steps": 0,
                "spikes": 0,
                "mixture": {name: round(1 / sources + generator.gauss(0, 0.01), 5) for name in names},
                "repeated_since": {},
                "records": {name: {"documents": step * 40, "empty": 0, "bad": 0} for name in names[:4]},
                "time": round(1.7e9 + 27.6 * step, 1),
            }
            if step % 500 == 0:
                record["held_out"] = {name: {"loss": loss + 0.1, "bits_per_byte": loss / 3} for name in names}
            file.write(json.dumps(record) + "\n")
    return path.stat().st_size


def measure(folder: str, repetitions: int) -> dict[str, float]:
    """Seconds of each opening, and the server's memory."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "scripts/dashboard.py", folder, "--port", "0"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        warm = browser.new_page()  # the browser's own start is not the page's
        started = time.perf_counter()
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            address = server.stdout.readline().split()[3]
            listening = time.perf_counter() - started
            memory = psutil.Process(server.pid)
            before = memory.memory_info().rss
            first = opening(browser, address)
            page = browser.new_page()
            page.goto(address)
            page.wait_for_function(
                "() => document.querySelector('.state') && !document.querySelector('.state.reading')"
            )
            read = time.perf_counter() - started - listening
            page.close()
            later = [opening(browser, address) for _ in range(repetitions)]
            warm.close()
            return {
                "start of the script until it listens, s": listening,
                "first opening, numbers on the page, s": first[0],
                "first opening, curves of what is read so far, s": first[1],
                "from listening until all is read, s": read,
                "opening, numbers on the page, s": statistics.median(seconds for seconds, _, _ in later),
                "opening, curves drawn, s": statistics.median(seconds for _, seconds, _ in later),
                "opening, curves drawn, slowest, s": max(seconds for _, seconds, _ in later),
                "opening, CPU of browser and server, s": statistics.median(cpu for _, _, cpu in later),
                "memory of the server before, MB": before / 1e6,
                "memory of the server after, MB": memory.memory_info().rss / 1e6,
            }
        finally:
            server.terminate()
            server.wait()
            browser.close()


def opening(browser: object, address: str) -> tuple[float, float, float]:
    """Seconds until the table of runs stands, and until the first screen's curves are drawn, with nothing cached.

    The third figure is what browser and server computed for it: about the seconds it would take on a machine that does
    nothing else.
    """
    before = computed()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    started = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector("tbody tr")
    numbers = time.perf_counter() - started
    page.wait_for_function(f"() => document.querySelectorAll('.plot .main-svg').length >= {CURVES}")
    page.evaluate("() => new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted)))")
    curves = time.perf_counter() - started
    cpu = computed() - before
    context.close()
    return numbers, curves, cpu


def computed() -> float:
    """CPU seconds of all processes started here: the server, Playwright's driver and the browser's."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


if __name__ == "__main__":
    main()

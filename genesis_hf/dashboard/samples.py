"""Continuations and answers through training."""

import json
from pathlib import Path
from typing import Any

from genesis_hf.dashboard.tail import Tail

STEPS = 200
"""Steps that the page shows; of more, evenly spread ones, the first and the last among them."""

CHARACTERS = 4000
"""Of one text; a longer one is cut."""


class Samples:
    """samples.jsonl as it grows."""

    def __init__(self, folder: Path) -> None:
        self.tail = Tail(folder / "samples.jsonl")
        self.texts: dict[int, dict[str, str]] = {}

    def refresh(self) -> bool:
        """Read what is new; whether anything was."""
        lines, anew = self.tail.read()
        if anew:
            self.texts.clear()
        for record in json_lines(lines):
            step, samples = record.get("step"), record.get("samples")
            if isinstance(step, int) and isinstance(samples, list):
                said = (sample for sample in samples if isinstance(sample, dict))
                self.texts[step] = {prompt_text(s.get("prompt")): answer_text(s) for s in said}
        return bool(lines) or anew

    def view(self) -> dict[str, Any]:
        """`prompts`, `steps`, and `texts`: for each prompt its text at each step, None where it wasn't asked."""
        steps = spread_out(sorted(self.texts), STEPS)
        prompts = list(dict.fromkeys(prompt for step in steps for prompt in self.texts[step]))
        texts = [[self.texts[step].get(prompt) for step in steps] for prompt in prompts]
        return {"prompts": prompts, "steps": steps, "texts": texts, "all_steps": len(self.texts)}


def prompt_text(prompt: Any) -> str:
    """A prompt as text; of a conversation each turn but a single one after its role."""
    if isinstance(prompt, str):
        return prompt[:CHARACTERS]
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    if len(turns) == 1:
        return str(turns[0].get("content"))[:CHARACTERS]
    return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in turns)[:CHARACTERS]


def answer_text(sample: dict[str, Any]) -> str:
    """What the model wrote; an answer that did not end by itself ends with an ellipsis."""
    text = str(sample.get("continuation", sample.get("answer", "")))
    return text[:CHARACTERS] + (" …" if sample.get("stopped") is False or len(text) > CHARACTERS else "")


def spread_out(values: list[int], most: int) -> list[int]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def json_lines(lines: bytes) -> list[dict[str, Any]]:
    """The objects among some lines; what is none is left out."""
    records = []
    for line in lines.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records

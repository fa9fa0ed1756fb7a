"""SFT and preference training over TRL.

A run directory holds `recipe.yaml`, `metrics.jsonl`, TRL's `checkpoint-N` folders, and in the end `final/` (a plain
Llama folder) and `summary.json`. A run whose `summary.json` stands is finished.
"""

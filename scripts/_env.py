"""Imported first by every script: set the recipe's `env:` before torch, NCCL or the Hub client read theirs.

A recipe that can't be read is left for the script's own parser, which says what is wrong with it.
"""

import logging
import os
import sys

import yaml

# A script's own folder comes last: in front, scripts/evaluate.py would hide the library of that name.
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here] + [here]

# Ctrl-C while libraries are being imported, before a script reports errors itself: a word, no traceback.
plain_excepthook = sys.excepthook
sys.excepthook = lambda kind, *error: (
    print("interrupted", file=sys.stderr) if kind is KeyboardInterrupt else plain_excepthook(kind, *error)
)

# OpenMP threads that wait sleep. Spinning instead makes a training step on idle CPU cores up to a sixth faster, and ten
# times slower as soon as anything else runs there (docs/LOG.md): set GOMP_SPINCOUNT=100000 where nothing does.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Long documents are encoded whole and cut afterwards, so a tokenizer's warning about their length means nothing here.
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
# No library reports home from here unless the user says so.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def recipe_path(argv: list[str]) -> str | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith("--config="):
            return word.partition("=")[2]
    return None


try:
    with open(recipe_path(sys.argv) or os.devnull, encoding="utf-8") as file:
        values = (yaml.safe_load(file) or {}).get("env") or {}
    os.environ.update({key: str(value) for key, value in values.items()})
except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError):
    pass

"""Formats that a checkpoint is exported to, and the proof of each.

| module | noun |
|---|---|
| `source.py` | what is exported: a checkpoint, or a Llama folder |
| `live.py` | the live model, its weights read, rounded and forgotten one at a time |
| `llama.py` | the plain Llama folder |
| `reading.py` | an exported file, read as a stranger reads it: the program of a fresh process |
| `onnx.py`, `gguf.py`, `state_dict.py` | the Llama folder in three other formats |
| `formats.py` | what is written for a format, how it is compared, and how far it may be off |
| `causes.py` | why an export computes something else |

`genesis_hf/export.py` makes the folder of them all; `genesis_hf/parity.py` asks and compares.
"""

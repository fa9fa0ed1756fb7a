"""What a run will need and take, before anything is spent.

| module | noun |
|---|---|
| `recipe.py` | what is asked beside the pretraining recipe |
| `devices.py` | the devices, and how processes share the model (the launch's YAML) |
| `tracing.py` | bytes that a micro-batch holds, counted on tensors without memory |
| `memory.py` | memory of one device, by what it holds |
| `speed.py` | seconds of a step: products, and what goes over the wire |
| `costs.py` | days, energy, money, disk, the computer's memory |
| `variants.py` | the same with other settings; the cheapest that fits |
| `planner.py` | all of it for one recipe |
| `page.py` | the page: text, Markdown, HTML, JSON |

`genesis_hf/cards.py` is the table of cards. `preflight/` measures what this predicts.
"""

"""Talk to checkpoints: in a browser (Gradio), and in the terminal.

| module | noun |
|---|---|
| `recipe.py`, `names.py` | the settings of `scripts/playground.py`, also on a Hugging Face Space; names on the Hub |
| `catalogue.py` | the models one may choose |
| `loading.py`, `shelf.py` | a model of the catalogue → one that answers; the few that are in memory |
| `prompts.py`, `sampling.py` | what a model is given, cut to its context; how it is sampled, within bounds |
| `answering.py`, `token_page.py` | answers as they are written; tokens as HTML with their probabilities |
| `page.py`, `look.py` | the page; its style |
| `serve.py`, `door.py` | the server; what a browser may ask it for |
| `terminal.py` | the terminal's conversation and its /commands |
"""

"""Models and checkpoints on the Hub, and back.

| module | noun |
|---|---|
| `repository.py` | a repository of the Hub: revisions, one commit a change, tags; failures in words |
| `secrets.py` | what looks like a secret in files that are to go up |
| `layout.py` | where files lie in a repository |
| `model.py` | what is published: a model's folder, its run, its checkpoint |
| `card.py`, `lineage.py` | the model card; what a model came from |
| `publish.py`, `pull.py` | up, and down again |

`genesis_hf/checkpoint/upload.py` uploads checkpoints while a run goes on.
"""

"""The live page about runs: their files, read as they grow, as curves in a browser. Never imported by training.

| module | noun |
|---|---|
| `folders.py` | the run directories below some folders, and what to call them |
| `tail.py` | the new lines of a growing file, which may also shrink or be replaced |
| `columns.py`, `points.py` | the numbers of metrics.jsonl by key; a few points that keep the extremes |
| `status.py` | whether a run goes on, how far it is, when it ends |
| `samples.py`, `events.py` | continuations and answers through training; what happened once |
| `run.py`, `board.py` | all that the page shows of one run; several runs, read in the background |
| `page.py`, `server.py` | the page, live or as a file; the server on this machine |
"""

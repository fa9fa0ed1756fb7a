"""What a model scores, and what the scores can and cannot say.

| module | noun |
|---|---|
| `set_forms.py`, `task_files.py` | evaluation sets in their authors' forms; a folder of lm-eval tasks made of them |
| `evaluate.py` | the evaluation of one model |
| `harness.py`, `batch_size.py` | lm-eval in this process, on one device or several; what memory has room for |
| `scores.py`, `ties.py` | lm-eval's figures with errors and chance levels; what length alone would score |
| `bits_per_byte.py`, `held_out.py` | the loss on text; held-out sources as tasks |
| `results.py` | the result files |
| `sanity.py`, `suspects.py` | can these scores be this model's?; why they can't, tried out |
| `compare.py`, `tables.py`, `plot.py` | models side by side; as text and page; as bars |
| `quick_look.py` | a few continuations, judged |
"""

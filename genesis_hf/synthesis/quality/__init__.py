"""What is kept of what was written, and how varied it is.

| module | noun |
|---|---|
| `faults.py`, `languages.py` | what is wrong with an answer by itself; which language a text is in |
| `duplicates.py` | texts that came before, to the letter or nearly |
| `contamination.py` | items of evaluation sets in a text |
| `diversity.py` | distinct n-grams, openings, coverage and lengths |
| `curation.py` | records → conversations kept, dropped and described |
"""

from genesis_hf.synthesis.quality.curation import curate

__all__ = ["curate"]

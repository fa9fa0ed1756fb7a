"""Conversations and preference pairs written by any chat model and held to a constitution.

In the order in which things happen:

| module | noun |
|---|---|
| `constitution.py`, `recipe.py` | what a person edits: principles, categories, topics; settings of the two scripts |
| `prompts.py` | what is asked: a pure function of constitution, seed and number |
| `providers/` | who answers: an OpenAI-compatible endpoint, Anthropic's, a model in this process |
| `records.py` | append-only files, what they were made from, who may write them |
| `calls.py`, `budget.py` | every paid call once: the journal, limits, answers of no use; what may be spent |
| `work.py` | numbers worked through: so many at once, a second try, an orderly end |
| `conversations.py`, `synthesize.py` | one conversation: turns, critique, revision; all of them, and their proof |
| `candidates.py`, `judge.py` | k answers to a prompt; which is better, and why |
| `scoring.py`, `pairs.py` | answers → scores; the pairs kept, balanced for length |
| `preferences.py`, `preference_files.py` | the pairs of a recipe; rows, figures, verification |
| `quality/` | duplicates, refusals, language, contamination, diversity |
| `report.py`, `data_card.py` | pages about what was made |
"""

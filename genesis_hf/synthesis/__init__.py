"""Conversations and preference pairs written by any chat model and held to a constitution.

In the order in which things happen:

| module | noun |
|---|---|
| `constitution.py`, `recipe.py` | what a person edits: principles, categories, topics; settings of the two scripts |
| `prompts.py` | what is asked: a pure function of constitution, seed and number |
| `providers/` | who answers: an OpenAI-compatible endpoint, Anthropic's, a model in this process |
| `calls.py`, `budget.py` | every paid call once: the journal, limits and retries; what may be spent |
| `conversations.py`, `records.py` | one conversation: turns, critique, revision; the append-only file of them |
| `candidates.py`, `judge.py`, `pairs.py` | k answers to a prompt; which is better, and why; the pairs kept |
| `quality/` | duplicates, refusals, language, contamination, diversity |
| `report.py`, `data_card.py` | pages about what was made |
"""

"""Evaluation sets and held-out text, looked for in the training text."""

"""Checkpoints as transactions: complete or absent, verified before they are read."""

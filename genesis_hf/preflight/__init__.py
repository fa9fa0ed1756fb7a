"""A recipe tried on the machine it will run on: what works, what is slow, what is wrong."""

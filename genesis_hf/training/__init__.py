"""From recipe to checkpoints: the pretraining loop and what stands around it."""

"""The trunk and its branches as commands, from a recipe: what runs when, here or under Slurm.

recipe.py    milestones, and what happens at each
tree.py      the recipe as stages (`genesis_hf.stages`), each an ordinary command
check.py     what a phase's script would refuse
slurm.py     stages as jobs that wait for each other
status.py    how far the tree is, as a table
"""

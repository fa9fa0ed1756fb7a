"""The tree of checkpoints: what each model came from, and what a branch does otherwise.

Reads run files; never imported by training.

    folders.py       the runs, exports and models below some folders
    nodes.py         a model in the tree: steps, tokens, recipe, evaluations
    tree.py          the nodes, each with its parent
    repetition.py    what may have come twice
    evaluations.py   which evaluation is of which model, by the hash of its files
    differences.py   recipes and figures of two nodes
    display.py       the tree and a comparison as text
    fork.py          a new run that goes on from a checkpoint of another
"""

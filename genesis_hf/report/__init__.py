"""The page about runs, made from their files alone; never imported by training.

material.py     the run files below some folders: found, and read as far as they can be
log.py          metrics.jsonl, read line by line
curve.py        a figure over the steps, in little memory
results.py      scores side by side, and what follows from them
trainings.py    settings, data, events and costs as tables
samples.py      what the models wrote
trouble.py      what is wrong with runs, or may be
charts.py       curves and intervals as inline SVG
sections.py     the parts of the report, in a reader's order
pages.py        the report as HTML, Markdown and text
tables.py       tables as Markdown and HTML
"""

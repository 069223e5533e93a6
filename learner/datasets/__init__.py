"""Training data that people bring along: pairs of pictures with a preference.

rows.py      what one pair is, and what makes a row bad        images.py   bytes to RGB
folder.py    a folder of pairs (pairs.jsonl + pictures)        parquet.py  Pick-a-Pic's parquet files, local or streamed
order.py     seeded order, shares of ranks, resuming           pairs.py    from a path or hub id to a source
check.py     python -m learner.datasets.check PATH
"""

"""Training data that people bring along: pairs of pictures with a preference, and captioned pictures.

For both: check.py (python -m learner.datasets.check), order.py (seeded order, resuming), images.py (bytes to RGB).

learner.main        offline.py   the data set as the learner's queue; books.py counts, latent_cache.py keeps latents
                    examples.py  rows of any form as examples: tables.py, jsonl_table.py, parquet_table.py,
                                 keyed_files.py (folders and tar archives)
learner.train_spm   pairs.py     from a path or hub id to a source of rows.py: folder.py (pairs.jsonl), parquet.py
"""

"""Do the objectives do in the miniature what the papers say of them? See docs/ablations.md, which this writes.

cells.py ─ what is varied ─► run.py ─ one cell, one process ─► docs/ablations/<cell>.json ─► report.py, plots.py
"""

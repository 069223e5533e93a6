"""Is a LoRA better than its base: pictures, scores, intervals, a page to look at, blind votes.

settings.py ─► lora.py (one model at a time) ─► pictures.py (PNG on disk, resumable)
                                                    └─► scoring.py ─► report.py (statistics.py) ─► results.json
                                                                          └─► page.py, ballot.py ─► HTML
"""

"""GenEval (Ghosh et al., NeurIPS 2023, arXiv:2310.11513): does a picture show what its prompt asks for, by detection.

pictures ─► detector.py (Mask2Former) ─► rules.py ◄─ colours.py (CLIP on masked crops)
                                            └─► tasks.py: six scores and their mean
"""

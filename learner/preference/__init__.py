"""Training of the step-aware preference model: batches.py (pairs to predicted pictures), train.py (the loop),
trainer.py (Ray Train), checkpoint.py (resuming), output.py (what is written). The command is learner/train_spm.py."""

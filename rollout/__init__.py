"""The rollout side: prompts, policy, sampling, records, queue, weights, workers, evaluator."""

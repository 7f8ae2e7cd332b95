"""How good a ranking is, by the metric of the challenge without the faults of its public evaluator."""

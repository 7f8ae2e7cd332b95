"""Training: tasks, losses, the loop, the optimizer, checkpoints, logs, and the learning-rate finder."""

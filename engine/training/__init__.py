"""Training one network: the loop, optimisers and schedules, and checkpoints."""

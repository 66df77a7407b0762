"""Watching a training as it runs: traces, idle time, and curves for TensorBoard."""

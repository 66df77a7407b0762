"""What a training does as it runs: traces, idle time, and curves for TensorBoard."""

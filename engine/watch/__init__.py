"""Watching a training as it runs: traces, idle time, and what loggers such as TensorBoard are told."""

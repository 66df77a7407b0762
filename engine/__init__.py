"""Data pipelines, the training loop, evaluation and reports. Imports `models` and `kernels`, never `train`."""

"""A stand-in for a CUDA device: Triton's driver, torch's calls, and computation of the results."""

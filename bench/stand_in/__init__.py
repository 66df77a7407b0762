"""What stands in for a CUDA device where there is none: Triton's driver, torch's calls, who computes the results."""

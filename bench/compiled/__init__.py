"""Machine code of our kernels, read without a GPU."""

"""What our kernels compile to, read without a GPU."""

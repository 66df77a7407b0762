"""What kernels would take on a GPU that is not there, from their machine code and what their programs do."""

"""Image sets, their files, and the loaders that make batches of them."""

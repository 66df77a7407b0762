"""Image files as they are on disk: photos, stacks of channels, tar shards, and text files beside them."""

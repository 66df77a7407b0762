"""The formats of files on disk: photos, stacks of channels, tar shards and text files."""

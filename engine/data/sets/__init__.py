"""Image sets: made from lists, folders, tar shards, CIFAR-100, labelled scenes, or generated, and scanned."""

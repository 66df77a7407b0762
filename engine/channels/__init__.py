"""Channels: their names, the combinations of them, and what a model is shown of a combination."""

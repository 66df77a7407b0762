"""Channels: their names, the combinations of them, and a model's input for a combination."""

"""Predicted kernel times on a GPU that is not present, from machine code and traces of the programs."""

"""Decoded images that are kept: where, in which form, and on disk for the next run."""

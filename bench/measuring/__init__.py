"""Timing of implementations, and the files of results."""

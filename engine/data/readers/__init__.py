"""Readers: each carries out a loader's work in its own way, and all give the same pixels."""

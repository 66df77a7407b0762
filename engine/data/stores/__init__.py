"""Stores of decoded images: their memory and form, and a cache on disk for the next run."""

"""Readers: each decodes the batches that a loader requests, and all give the same pixels."""

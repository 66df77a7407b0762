"""A job that crashes, in a module that a new process imports quickly."""

import os


def doubled(chunk):
    """Return twice each number; 5 and 13 end the process as a crash does."""
    for item in chunk:
        if item in (5, 13):
            os._exit(139)
    return [2 * item for item in chunk]

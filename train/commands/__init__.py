"""The commands beside the tasks: what is done with a run's networks, and tools for data."""

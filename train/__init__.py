"""The command line and the tasks: what `python -m train.run` does."""

"""The command line and the tasks, run by `python -m train.run`."""

if __name__ == "train":  # a clone's short name for `polychrome.train`
    from polychrome.clone import alias

    alias(__name__)

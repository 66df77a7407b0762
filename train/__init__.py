"""The command line and the tasks: what `python -m train.run` does."""

if __name__ == "train":  # a clone's short name for `polychrome.train`
    from polychrome.clone import alias

    alias(__name__)

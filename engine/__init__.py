"""Data pipelines, the training loop, evaluation and reports. Imports `models` and `kernels`, never `train`."""

if __name__ == "engine":  # a clone's short name for `polychrome.engine`
    from polychrome.clone import alias

    alias(__name__)

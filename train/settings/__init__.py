"""The settings of a run: flags, TOML files, and the entries of `--models` with their variants."""

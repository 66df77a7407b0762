"""Half an hour on a GPU used to the full: `python -m bench.gpu --out DIR` and the steps that it takes."""

"""`python -m bench.report`: a device's results as a page with pictures, in Markdown and in HTML."""

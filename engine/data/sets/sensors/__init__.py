"""Sets whose images have different channels, or a file for each channel."""

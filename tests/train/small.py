"""Settings of runs whose figures alone are looked at."""

# fp32, so that the figures do not depend on what the processor multiplies natively.
QUICK = ("--workers", "1", "--precision", "fp32", "--no-plots", "--no-tensorboard")

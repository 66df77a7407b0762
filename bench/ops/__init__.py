"""The shapes at which each op is measured, and its baselines."""

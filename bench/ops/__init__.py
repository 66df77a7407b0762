"""The shapes at which each op is measured, and what it is measured against."""

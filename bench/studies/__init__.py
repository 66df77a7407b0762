"""The tables of the trainings that docs/flagship.md tells of."""

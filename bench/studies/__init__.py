"""The tables of the trainings in docs/flagship.md."""

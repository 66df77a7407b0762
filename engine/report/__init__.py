"""What a run shows people: tables, plots, `report.md`, `report.html` and the terminal's summary."""

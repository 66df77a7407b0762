"""How a way is timed, and what is written down of it."""

"""Training one network: the loop, what it optimises with, and the state that a later start goes on from."""

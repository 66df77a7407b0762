"""The machine and its other processes: devices, memory, files, signals, workers."""

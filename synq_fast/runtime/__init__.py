"""The machine and the process: devices, threads, memory, seeds, precision, recordings, progress."""

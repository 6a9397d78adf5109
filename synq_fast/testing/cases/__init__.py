"""One file for each op, found by its name."""

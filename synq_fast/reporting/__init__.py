"""What a run shows: the HTML page and its figures, TensorBoard."""

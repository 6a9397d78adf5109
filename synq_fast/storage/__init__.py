"""Files that are whole or absent; checkpoints and run folders; users' paths and texts."""

"""The synthetic images: shards, memory or files, batches of crops."""

"""The networks: plain torch modules, independent of shards, datasets and training."""

"""Features of own videos: video files in, shards out."""

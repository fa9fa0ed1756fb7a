"""Text → token shards."""

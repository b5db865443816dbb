"""The CPU path: tiles of a weight that stay in the cache."""

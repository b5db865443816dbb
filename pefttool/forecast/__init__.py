"""What a run will need before it starts: memory simulated without weights, and throughput."""

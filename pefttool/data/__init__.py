"""A user's rows: read, recognised, split, checked for leaks, encoded and put into batches."""

"""A model at work without training: evaluation, features, comparisons of one model with another."""

"""The example models and data, by family: what they are, what they are made from, and what makes them."""

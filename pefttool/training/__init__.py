"""The training loop, its optimiser, its watches and what follows the last step."""

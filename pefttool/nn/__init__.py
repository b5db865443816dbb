"""Modules and tensors of a network: attention, dropout, where weights lie and what is kept of a pass."""

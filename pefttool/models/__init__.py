"""Pretrained models: where they come from, what their configuration says, how they are loaded."""

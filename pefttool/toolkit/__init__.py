"""Helpers for authors of plugins: columns, classes, time stamps, decoders, PEFT folders."""

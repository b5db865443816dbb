"""Triton kernels and their launchers: one family a file. Nothing here is imported before it is used."""

"""How files are written and read, whatever is in them: whole or not at all, and checked."""

"""What becomes of a trained adapter: reloaded, checked, merged."""

"""From a plan to an adapted model on its device."""

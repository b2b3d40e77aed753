"""What to change, what contradicts it, and by what to probe it."""

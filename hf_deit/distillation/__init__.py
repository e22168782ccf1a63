"""The teacher, its outputs, live or from a cache, and the loss terms that the student learns from."""

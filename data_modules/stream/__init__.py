"""The order of a training stream, and what becomes of it on the way to a batch."""

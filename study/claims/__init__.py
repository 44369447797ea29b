"""What others have published, derived again from the figures that they print."""

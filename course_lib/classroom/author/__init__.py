"""What an author has: notebooks are built from notebooks/source."""

"""Robot worlds."""

"""What every run has: its folder, its lock, the wish to stop."""

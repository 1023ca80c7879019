"""Synthetic text from a teacher, and students that learn from one."""

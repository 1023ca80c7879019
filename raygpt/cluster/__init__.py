"""Connecting to a Ray cluster, or starting one."""

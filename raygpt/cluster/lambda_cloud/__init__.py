"""Lambda Cloud: its API, a node provider for Ray, and what looks after machines that nobody ends.

It runs on the laptop and on a cluster's head, so nothing here imports torch, and Ray only where the provider is.
"""

"""Corpora in, token shards and training batches out."""

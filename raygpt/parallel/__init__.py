"""How workers share a model, and the checkpoints they write together."""

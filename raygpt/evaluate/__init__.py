"""How good a model is: loss over a whole token stream, and what the stream's own statistics would score."""

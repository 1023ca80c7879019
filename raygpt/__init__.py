"""raygpt: train, tune and distil GPT-2-class language models on a Ray cluster."""

__version__ = "0.1.0"

"""The GPT-2-class model: architecture, presets, generation, exchange with Hugging Face."""

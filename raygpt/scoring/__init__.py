"""PURE. Likelihoods: what a language model gives to text, and the tasks that are measured by it."""

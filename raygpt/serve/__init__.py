"""The OpenAI protocol over Ray Serve, and the engines behind it."""

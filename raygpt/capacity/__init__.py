"""Will it fit, how long will it take: memory planned before anything is allocated."""

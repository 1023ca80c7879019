"""One module per job: each composes what the packages beside it offer and holds no logic of its own."""

"""Classification fine-tuning and the search for hyperparameters (Ray Tune)."""

"""Classification of texts and pairs of texts: tasks, training, export."""

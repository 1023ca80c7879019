"""What a run says about itself: the metrics record, progress, trackers, summary, plots and report."""

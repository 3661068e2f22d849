"""What can be said of clients and seeds: summaries, intervals, verdicts."""

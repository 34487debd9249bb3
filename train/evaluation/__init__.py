"""Scores of test images against their labels: metrics, cells and the summary of a run."""

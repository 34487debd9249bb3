"""Metrics, the result of a cell, and the results of a run."""

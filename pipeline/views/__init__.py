"""A cache to look at: tables, figures and the gallery."""

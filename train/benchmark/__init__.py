"""Arms compared: every category, arm and seed, trained by one recipe and budget."""

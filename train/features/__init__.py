"""Embeddings of an image in a backbone, and the network that training changes."""

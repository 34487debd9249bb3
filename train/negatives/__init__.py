"""Normals out of the cache, and the negatives made of them."""

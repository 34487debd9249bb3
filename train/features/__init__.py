"""Embeddings of images in a backbone, and their cells on one grid."""

"""What is fitted to normals and learned from negatives; a score is higher where an image is more anomalous."""

"""What a backbone says of an image: embeddings, and the network that training changes."""

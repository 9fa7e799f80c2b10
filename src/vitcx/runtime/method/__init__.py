"""The steps of the method, from patch embeddings to the map."""

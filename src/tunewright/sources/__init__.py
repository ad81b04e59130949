"""May it be opened: find a model's files, read their headers, refuse what is not safe."""

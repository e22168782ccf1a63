"""The student models: configuration, network, image processor, and the import and export of weights."""

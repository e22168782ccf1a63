"""What is published: the facts of a run, the model card, the upload and the demo Space."""

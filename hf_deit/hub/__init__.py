"""Publishing: the facts of a run, the model card, the upload to the Hub, and the demo Space."""

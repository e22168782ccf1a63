"""Images: where they come from, in which order they are shown, and how their pixels are changed."""

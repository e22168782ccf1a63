"""The images: where they come from, in which order they are shown, and what is done to their pixels."""

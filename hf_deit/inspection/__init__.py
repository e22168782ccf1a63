"""Looking at a trained model: what its tokens read in images."""

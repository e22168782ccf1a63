"""Looking at a trained model: its predictions in a table, figures and a report, and what its tokens read in images."""

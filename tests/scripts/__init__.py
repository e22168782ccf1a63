"""What the tests of teacher, trainer, resume and processes share, and the scripts they launch."""

"""The Hugging Face `Trainer` with a teacher: arguments, steps, evaluation, checkpoints and exact resume."""

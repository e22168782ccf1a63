"""The Hugging Face `Trainer` with a teacher: arguments, training steps, evaluation, checkpoints and exact resume."""

"""Many trainings: sweeps and ablations."""

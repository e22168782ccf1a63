"""Experiments of many trainings (sweeps and ablations), and the demo."""

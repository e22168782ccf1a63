"""Recipes: a YAML file of fields, the objects that are built from it, and the main commands that use it."""

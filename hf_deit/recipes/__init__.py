"""A recipe: one YAML of fields, what is built from it, and what the main commands do with it."""

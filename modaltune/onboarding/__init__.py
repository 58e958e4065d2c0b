"""A hospital's first hour: a draft of ``site.toml``, and local label codes mapped to a study's vocabulary."""

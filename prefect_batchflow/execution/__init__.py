"""One line through one flow. This module imports nothing: worker processes pass through it."""

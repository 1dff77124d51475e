"""A loaded flow and its walk. This module imports nothing: worker processes pass through it."""

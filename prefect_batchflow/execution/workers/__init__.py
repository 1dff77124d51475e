"""Worker processes and the pool that feeds them. This module imports nothing: worker processes pass through it."""

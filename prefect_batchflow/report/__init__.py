"""The artifacts of a run in Prefect, for people."""

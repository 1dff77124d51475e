"""The records of a run, by line_number."""

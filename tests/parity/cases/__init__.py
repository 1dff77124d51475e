"""The cases by area; `declared.all_cases` imports them all."""

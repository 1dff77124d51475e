"""Images in data, prompts and outputs: their bytes, their JSON forms, and where they can be read from."""

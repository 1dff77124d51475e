"""Images in data, prompts and outputs: their bytes, how they are written, where they may be read from."""

"""What a node calls."""

"""Rows from anywhere fsspec reaches, and the mapping that turns them into inputs."""

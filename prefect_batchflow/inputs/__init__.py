"""Rows from anywhere fsspec reaches, and the mapping that makes inputs of them."""

"""Connections: plain values, by name, with which a flow reaches services; promptflow's types."""

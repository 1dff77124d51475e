"""Connections: what a flow needs to reach a service, by name; plain values of promptflow's types."""

"""Flows in other languages, run by a service that speaks promptflow's protocol."""

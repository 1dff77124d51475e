"""Errors: their classes and groups, choices by name, waits of services, missing packages. No Prefect, no pydantic."""

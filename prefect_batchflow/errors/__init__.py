"""What an error is: its class, its group, whether it was chosen, how long a service asks to wait. No Prefect, no pydantic."""

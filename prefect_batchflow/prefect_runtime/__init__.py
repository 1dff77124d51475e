"""Every place that reaches into Prefect itself: an upgrade of Prefect is checked here first."""

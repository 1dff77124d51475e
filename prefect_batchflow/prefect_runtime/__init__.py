"""Every place that reaches into Prefect itself. Check these files first when you upgrade Prefect."""

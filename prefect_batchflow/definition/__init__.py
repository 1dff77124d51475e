"""What a flow is: parsed, checked, frozen; no user code runs here."""

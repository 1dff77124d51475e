"""Runs whose chunks of lines are tasks on a Dask or Ray cluster: what travels, what runs there, who asks for it here."""

"""What a run, a line and a node gave: records, their tally, and promptflow's result models."""

"""Results of a run, a line and a node: records, their tally, and promptflow's result models."""

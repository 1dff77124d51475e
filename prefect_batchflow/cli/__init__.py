"""The command `batchflow`: the commands, what they take, what they find in a storage, what they show."""

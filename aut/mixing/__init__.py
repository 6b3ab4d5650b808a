"""Mixing: what makes the mixture. `keys` hash, `plan` chooses, `parts` write, `digest` and `tally` sum up."""

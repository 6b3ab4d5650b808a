"""Mixing: makes the mixture. `keys` hash, `causes` block, `plan` chooses, `parts` write, `digest`, `tally` sum up."""

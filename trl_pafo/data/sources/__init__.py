"""Where preference pairs come from. Each source ends in the one schema: `prompt`, `chosen`, `rejected`, `user`, `group`
and `support_rate`, in a `DatasetDict` whose `test` split shares neither a user nor a prompt with `train`."""

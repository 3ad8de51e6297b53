"""A preference pair as one row [prefix | chosen rest | rejected rest]: what both responses share is computed once."""

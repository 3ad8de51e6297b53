"""Users: which member serves whom, weights from answers and histories, a portfolio for the users at hand."""

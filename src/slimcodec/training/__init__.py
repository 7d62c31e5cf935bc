"""Training stages, losses, data and the loop that runs them."""

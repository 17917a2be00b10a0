"""What a model, a loss and an algorithm are; the round in its plainest form."""

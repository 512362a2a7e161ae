"""How it survives: checkpoints that resume bit for bit."""

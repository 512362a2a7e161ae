"""How the model is split."""

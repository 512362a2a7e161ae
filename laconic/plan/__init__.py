"""What it costs: the machines and the links between them."""

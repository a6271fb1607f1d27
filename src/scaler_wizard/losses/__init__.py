"""Training objectives: pure functions, tensors in, (loss, metrics) out. `registry.py` lists them."""

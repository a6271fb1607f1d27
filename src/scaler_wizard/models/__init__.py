"""Model in, model out: load, adapters, rotary positions, vocabulary, merge, export."""

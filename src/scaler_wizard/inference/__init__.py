"""Bulk generation and scoring inside recipes: continuous batching, bounded KV cache, exact per request."""

"""Asking experts in service: starts the engine process and speaks to it; torch stays on the other side."""

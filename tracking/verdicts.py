"""Evidence in, verdict with reasons out. Pure: no Django."""

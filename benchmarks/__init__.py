"""One file a claim: `python -m benchmarks.NAME [options] [--json]`, on engines of its own, leaving nothing behind."""

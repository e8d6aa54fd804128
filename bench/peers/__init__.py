"""Servers to compare with: a limit (raw_trio), a peer (sse_starlette_app), what came before (seed), ours without a disk."""

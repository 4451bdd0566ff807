"""The `sprawl` command: run a node, and talk to one as any other client would, over its public protocols."""

"""The engine: chunks, packs, index, manifests, and what keeps them safe."""

"""GGUF files: llama.cpp's single-file checkpoints. What a file says, checked; nothing here needs JAX. Whoever reads none is spared the
imports: modules are imported where a file is opened."""

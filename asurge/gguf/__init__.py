"""Read GGUF files, llama.cpp's single-file checkpoints, and check what they say.

Nothing here needs JAX. Modules are imported where a file is opened, so that other models are spared the imports.
"""

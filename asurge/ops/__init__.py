"""Array operations of models and samplers, in plain JAX or with kernels."""

"""Pictures and sparsity of the matrices that a model has learned."""

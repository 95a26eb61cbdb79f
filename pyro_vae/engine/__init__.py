"""Make a training step faster without changing its numbers: compilation, matmul, bfloat16."""

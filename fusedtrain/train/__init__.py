"""``python -m fusedtrain train``: one model, one seed, trained by stock PyTorch and by fusedtrain in step."""

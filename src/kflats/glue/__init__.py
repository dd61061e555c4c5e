"""The paper's experiment on GLUE: SVD against projective clustering, before and after training."""

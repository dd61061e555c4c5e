"""What counts for more: tokens by their frequency, directions by how the network uses them."""

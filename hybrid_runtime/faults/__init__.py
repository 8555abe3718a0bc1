"""What stopped a run, found in what its ranks left: free of torch."""

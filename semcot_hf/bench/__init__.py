"""The benchmarks: accuracy of SemCoT and its peers, and speed of answering."""

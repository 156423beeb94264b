"""`semcot bench speed`: latency, throughput and memory of each method, relative to a lower bound."""

"""`semcot bench speed`: latency, throughput and memory of each method, against the least that the hardware needs."""

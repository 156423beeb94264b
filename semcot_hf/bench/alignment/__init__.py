"""The sweep of stage 1: one setting of the alignment encoder at a time, judged by retrieval."""

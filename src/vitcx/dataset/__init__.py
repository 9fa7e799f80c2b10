"""Jobs over data sets: what comes out (`shards`), and resuming (`job`)."""
